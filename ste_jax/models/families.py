"""Which model families are known, and how do their files map to our config and parameters?

A family is a mapping of configs and a table of weight names; the computation is one
(`ste_jax.models.decoder`). A config field that would change the computation in a way that is not
known here is refused by name: a model that loads is the model that was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ste_jax.errors import RequestError
from ste_jax.models.config import ModelConfig, RopeScaling


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Where one of our parameters is found in a file.

    `hf` and `gguf` are tensor names, `{layer}` standing for the layer's number. `layout` says how
    the file has the dimensions, in our logical axes: `(q_heads head_dim) embed` is a matrix whose
    rows are the heads one after another.
    """

    path: str
    hf: str
    gguf: str
    layout: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is particular to a family."""

    config_from_hf: Callable[[Mapping[str, Any], str], ModelConfig]
    """(contents of config.json, its path for messages) -> our config."""
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    weights: tuple[Weight, ...]
    ignored: tuple[str, ...]
    """Ends of names of tensors that a file may hold and the computation does not need."""


_LLAMA_WEIGHTS = (
    Weight(
        path="embed",
        hf="model.embed_tokens.weight",
        gguf="token_embd.weight",
        layout="vocab embed",
    ),
    Weight(
        path="final_norm",
        hf="model.norm.weight",
        gguf="output_norm.weight",
        layout="embed",
    ),
    Weight(
        path="unembed",
        hf="lm_head.weight",
        gguf="output.weight",
        layout="vocab embed",
    ),
    Weight(
        path="layers.attention_norm",
        hf="model.layers.{layer}.input_layernorm.weight",
        gguf="blk.{layer}.attn_norm.weight",
        layout="embed",
    ),
    Weight(
        path="layers.q",
        hf="model.layers.{layer}.self_attn.q_proj.weight",
        gguf="blk.{layer}.attn_q.weight",
        layout="(q_heads head_dim) embed",
    ),
    Weight(
        path="layers.k",
        hf="model.layers.{layer}.self_attn.k_proj.weight",
        gguf="blk.{layer}.attn_k.weight",
        layout="(kv_heads head_dim) embed",
    ),
    Weight(
        path="layers.v",
        hf="model.layers.{layer}.self_attn.v_proj.weight",
        gguf="blk.{layer}.attn_v.weight",
        layout="(kv_heads head_dim) embed",
    ),
    Weight(
        path="layers.o",
        hf="model.layers.{layer}.self_attn.o_proj.weight",
        gguf="blk.{layer}.attn_output.weight",
        layout="embed (q_heads head_dim)",
    ),
    Weight(
        path="layers.q_bias",
        hf="model.layers.{layer}.self_attn.q_proj.bias",
        gguf="blk.{layer}.attn_q.bias",
        layout="(q_heads head_dim)",
    ),
    Weight(
        path="layers.k_bias",
        hf="model.layers.{layer}.self_attn.k_proj.bias",
        gguf="blk.{layer}.attn_k.bias",
        layout="(kv_heads head_dim)",
    ),
    Weight(
        path="layers.v_bias",
        hf="model.layers.{layer}.self_attn.v_proj.bias",
        gguf="blk.{layer}.attn_v.bias",
        layout="(kv_heads head_dim)",
    ),
    Weight(
        path="layers.o_bias",
        hf="model.layers.{layer}.self_attn.o_proj.bias",
        gguf="blk.{layer}.attn_output.bias",
        layout="embed",
    ),
    Weight(
        path="layers.mlp_norm",
        hf="model.layers.{layer}.post_attention_layernorm.weight",
        gguf="blk.{layer}.ffn_norm.weight",
        layout="embed",
    ),
    Weight(
        path="layers.gate",
        hf="model.layers.{layer}.mlp.gate_proj.weight",
        gguf="blk.{layer}.ffn_gate.weight",
        layout="mlp embed",
    ),
    Weight(
        path="layers.up",
        hf="model.layers.{layer}.mlp.up_proj.weight",
        gguf="blk.{layer}.ffn_up.weight",
        layout="mlp embed",
    ),
    Weight(
        path="layers.down",
        hf="model.layers.{layer}.mlp.down_proj.weight",
        gguf="blk.{layer}.ffn_down.weight",
        layout="embed mlp",
    ),
    Weight(
        path="layers.gate_bias",
        hf="model.layers.{layer}.mlp.gate_proj.bias",
        gguf="blk.{layer}.ffn_gate.bias",
        layout="mlp",
    ),
    Weight(
        path="layers.up_bias",
        hf="model.layers.{layer}.mlp.up_proj.bias",
        gguf="blk.{layer}.ffn_up.bias",
        layout="mlp",
    ),
    Weight(
        path="layers.down_bias",
        hf="model.layers.{layer}.mlp.down_proj.bias",
        gguf="blk.{layer}.ffn_down.bias",
        layout="embed",
    ),
)

_READ = {
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
}

# Fields that say how the model was made, is stored, trained or sampled, not what it computes.
_WITHOUT_EFFECT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "is_llama_config",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "return_dict",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
}


def _llama_config_from_hf(values: Mapping[str, Any], where: str) -> ModelConfig:
    def refuse(key: str, value: Any, why: str) -> RequestError:
        return RequestError(f"{where}: {key} is {value!r}, {why}")

    for key, value in values.items():
        # A field that is off (null, false) says that nothing unusual is asked for.
        if key not in _READ and key not in _WITHOUT_EFFECT and value is not None and value != 0:
            raise refuse(
                key, value, "a field that is not known here and may change the computation"
            )
    if values.get("hidden_act", "silu") != "silu":
        raise refuse("hidden_act", values["hidden_act"], "only silu is supported")

    def need(key: str) -> Any:
        if values.get(key) is None:
            raise RequestError(f"{where}: {key} is missing")
        return values[key]

    heads = need("num_attention_heads")
    hidden = need("hidden_size")
    if values.get("head_dim") is None and hidden % heads:
        raise refuse("hidden_size", hidden, f"not a multiple of num_attention_heads {heads}")
    max_position = values.get("max_position_embeddings") or 2048
    # transformers 5 has one mapping for all that is rotary, before it there were two fields.
    rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or values.get("rope_theta") or 10000.0
    return ModelConfig(
        vocab_size=need("vocab_size"),
        hidden_size=hidden,
        intermediate_size=need("intermediate_size"),
        num_layers=need("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or hidden // heads,
        max_position=max_position,
        norm_eps=float(need("rms_norm_eps")),
        rope_theta=float(theta),
        rope_scaling=_rope_scaling_from_hf(rope, max_position, where),
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        attention_bias=bool(values.get("attention_bias", False)),
        mlp_bias=bool(values.get("mlp_bias", False)),
    )


def _rope_scaling_from_hf(
    rope: dict[str, Any], max_position: int, where: str
) -> RopeScaling | None:
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    original = rope.pop("original_max_position_embeddings", None) or max_position
    known: dict[str, Callable[[], RopeScaling | None]] = {
        "default": lambda: None,
        "linear": lambda: RopeScaling(kind="linear", factor=float(rope.pop("factor"))),
        "llama3": lambda: RopeScaling(
            kind="llama3",
            factor=float(rope.pop("factor")),
            low_freq_factor=float(rope.pop("low_freq_factor")),
            high_freq_factor=float(rope.pop("high_freq_factor")),
            original_max_position=original,
        ),
    }
    if kind not in known:
        raise RequestError(
            f"{where}: rope scaling of type {kind!r} is not supported; known are {', '.join(known)}"
        )
    if rope.get("partial_rotary_factor") == 1:
        rope.pop("partial_rotary_factor")
    try:
        scaling = known[kind]()
    except KeyError as error:
        raise RequestError(f"{where}: rope scaling {kind!r} lacks {error.args[0]}") from error
    left = {key: value for key, value in rope.items() if value is not None}
    if left:
        key, value = next(iter(left.items()))
        raise RequestError(
            f"{where}: rope scaling {kind!r} has {key} {value!r}, which is not supported"
        )
    return scaling


def _llama_config_to_hf(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    rope: dict[str, Any] | None = None
    if scaling is not None:
        if scaling.kind == "factors":
            raise RequestError(
                "rope scaling by a table of factors (from a GGUF file) has no form in an HF "
                "Llama config, so this model cannot be written as one"
            )
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position,
            }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": "silu",
    }


FAMILIES: dict[str, Family] = {
    "llama": Family(
        config_from_hf=_llama_config_from_hf,
        config_to_hf=_llama_config_to_hf,
        weights=_LLAMA_WEIGHTS,
        # A tied model's file may repeat the embedding as its output matrix; old files hold the
        # rotary frequencies, which the config gives; llama.cpp's `rope_freqs` is read as part of
        # the config.
        ignored=("rotary_emb.inv_freq", "rope_freqs.weight"),
    ),
}


def family_of(model_type: Any, where: str) -> Family:
    """The family of that name. Raises `RequestError` naming `where` for one that is not known."""
    if model_type not in FAMILIES:
        raise RequestError(
            f"{where}: architecture {model_type!r} is not supported; supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]
