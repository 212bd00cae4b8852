"""Qwen 2 and 2.5: biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from ste_jax.model_io.families.family import Family, GGUFForm, one_kind
from ste_jax.model_io.families.hf_fields import common_to_hf, only_silu, read_shape
from ste_jax.model_io.families.qwen_layers import qwen_kinds, qwen_kinds_to_hf
from ste_jax.model_io.families.weights import DENSE
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import ModelConfig


def _from_hf(fields: Fields) -> ModelConfig:
    only_silu(fields)
    shape = read_shape(fields, num_key_value_heads=32, max_position_embeddings=32768)
    return ModelConfig(
        model_type="qwen2",
        intermediate_size=fields.size("intermediate_size"),
        kinds=qwen_kinds(fields, shape),
        qkv_bias=True,
        **shape,
    )


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    return {**common_to_hf(config, "Qwen2ForCausalLM"), **qwen_kinds_to_hf(config)}


FAMILY = Family(
    config_from_hf=_from_hf,
    config_to_hf=_to_hf,
    weights=DENSE,
    gguf=GGUFForm(architecture="qwen2", particular=one_kind),
)
