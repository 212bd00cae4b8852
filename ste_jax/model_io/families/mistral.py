"""Mistral: a Llama, in some versions with a window in every layer."""

from __future__ import annotations

from typing import Any

from ste_jax.model_io.families.family import Family
from ste_jax.model_io.families.hf_fields import common_to_hf, only_silu, read_shape
from ste_jax.model_io.families.layer_kinds import alike
from ste_jax.model_io.families.rope import read_rope, rope_to_hf
from ste_jax.model_io.families.weights import DENSE
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import LayerKind, ModelConfig


def _from_hf(fields: Fields) -> ModelConfig:
    only_silu(fields)
    shape = read_shape(fields, num_key_value_heads=8, max_position_embeddings=131072)
    window = fields.window(4096)
    kind = LayerKind(window=window, **read_rope(fields, shape["max_position"]))
    return ModelConfig(
        model_type="mistral",
        intermediate_size=fields.size("intermediate_size"),
        kinds=alike(fields, shape["num_layers"], kind),
        **shape,
    )


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    return {
        **common_to_hf(config, "MistralForCausalLM"),
        **rope_to_hf(config.kinds[0]),
        "sliding_window": config.kinds[0].window,
    }


FAMILY = Family(
    config_from_hf=_from_hf,
    config_to_hf=_to_hf,
    weights=DENSE,
)
