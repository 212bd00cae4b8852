"""Llama 2, 3, 3.1, 3.2, 3.3, and what has their form (SmolLM2)."""

from __future__ import annotations

from typing import Any

from ste_jax.model_io.families.family import Family, GGUFForm, one_kind
from ste_jax.model_io.families.hf_fields import common_to_hf, only_silu, read_shape
from ste_jax.model_io.families.layer_kinds import alike
from ste_jax.model_io.families.rope import read_rope, rope_to_hf
from ste_jax.model_io.families.weights import DENSE
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import LayerKind, ModelConfig


def _from_hf(fields: Fields) -> ModelConfig:
    only_silu(fields)
    shape = read_shape(fields)
    bias = fields.flag("attention_bias")
    return ModelConfig(
        model_type="llama",
        intermediate_size=fields.size("intermediate_size"),
        kinds=alike(
            fields, shape["num_layers"], LayerKind(**read_rope(fields, shape["max_position"]))
        ),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
        **shape,
    )


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    return {
        **common_to_hf(config, "LlamaForCausalLM"),
        **rope_to_hf(config.kinds[0]),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }


FAMILY = Family(
    config_from_hf=_from_hf,
    config_to_hf=_to_hf,
    weights=DENSE,
    gguf=GGUFForm(architecture="llama", particular=one_kind, interleaved=True),
)
