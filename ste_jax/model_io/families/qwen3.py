"""Qwen 3: norms on queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ste_jax.model_io.families.family import Family, GGUFForm, one_kind
from ste_jax.model_io.families.hf_fields import common_to_hf, only_silu, read_shape
from ste_jax.model_io.families.qwen_layers import qwen_kinds, qwen_kinds_to_hf
from ste_jax.model_io.families.weights import DENSE
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import ModelConfig, RopeScaling


def _from_hf(fields: Fields) -> ModelConfig:
    only_silu(fields)
    shape = read_shape(fields, num_key_value_heads=32, head_dim=128, max_position_embeddings=32768)
    bias = fields.flag("attention_bias")
    return ModelConfig(
        model_type="qwen3",
        intermediate_size=fields.size("intermediate_size"),
        kinds=qwen_kinds(fields, shape),
        qk_norm=True,
        qkv_bias=bias,
        o_bias=bias,
        **shape,
    )


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    return {
        **common_to_hf(config, "Qwen3ForCausalLM"),
        **qwen_kinds_to_hf(config),
        "attention_bias": config.qkv_bias,
    }


def _from_gguf(
    metadata: Fields, sizes: Mapping[str, Any], scaling: RopeScaling | None
) -> dict[str, Any]:
    return one_kind(metadata, sizes, scaling) | {"qk_norm": True}


FAMILY = Family(
    config_from_hf=_from_hf,
    config_to_hf=_to_hf,
    weights=DENSE,
    gguf=GGUFForm(architecture="qwen3", particular=_from_gguf),
)
