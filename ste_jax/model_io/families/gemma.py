"""What do Gemma 2 and 3 have in common?"""

from __future__ import annotations

from typing import Any

from ste_jax.model_io.families.hf_fields import common_to_hf
from ste_jax.model_io.families.layer_kinds import types_to_hf, window_of
from ste_jax.model_io.families.weights import ATTENTION, MLP, OUTSIDE, inner
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import ModelConfig

_NORMS = (
    inner("attention_post_norm", "post_attention_layernorm", "post_attention_norm", "embed"),
    inner("mlp_norm", "pre_feedforward_layernorm", "ffn_norm", "embed"),
    inner("mlp_post_norm", "post_feedforward_layernorm", "post_ffw_norm", "embed"),
)
WEIGHTS = (*OUTSIDE, *ATTENTION, *_NORMS, *MLP)


def read_gemma(fields: Fields) -> dict[str, Any]:
    """What both Gemmas have beside `read_shape`."""
    # Where there are both names `hidden_activation` counts: the first files' `hidden_act` is wrong.
    if fields.take("hidden_activation") is None:
        fields.only("hidden_act", "gelu_pytorch_tanh")
    fields.only("hidden_activation", "gelu_pytorch_tanh")
    fields.take("hidden_act")
    if fields.flag("use_bidirectional_attention"):
        raise fields.refuse("use_bidirectional_attention", "only causal attention is supported")
    bias = fields.flag("attention_bias")
    return {
        "norm_plus_one": True,
        "post_norms": True,
        "scale_embeddings": True,
        "activation": "gelu_tanh",
        "qkv_bias": bias,
        "o_bias": bias,
        "query_scalar": fields.number("query_pre_attn_scalar", 256),
    }


DEFAULTS = {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
"""Of `read_shape`."""


def gemma_to_hf(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """What a `config.json` of both Gemmas says."""
    return {
        **common_to_hf(config, architecture),
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": _whole(config.query_scalar),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.final_softcap,
        "sliding_window": window_of(config) or 4096,
        "layer_types": types_to_hf(config),
    }


def _whole(value: float | None) -> float | int | None:
    """A whole number as an int: transformers accepts no other form."""
    return int(value) if value is not None and value == int(value) else value
