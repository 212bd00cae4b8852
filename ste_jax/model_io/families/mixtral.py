"""Mixtral: a Mistral whose MLPs are mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ste_jax.model_io.families.family import Family, GGUFForm, experts, one_kind
from ste_jax.model_io.families.hf_fields import common_to_hf, only_silu, read_shape
from ste_jax.model_io.families.layer_kinds import alike
from ste_jax.model_io.families.rope import read_rope, rope_to_hf
from ste_jax.model_io.families.weights import BEFORE_MLP, mixture
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import LayerKind, ModelConfig, RopeScaling


def _from_hf(fields: Fields) -> ModelConfig:
    only_silu(fields)
    shape = read_shape(fields, num_key_value_heads=8, max_position_embeddings=131072)
    rope = read_rope(fields, shape["max_position"], theta=1e6)
    kind = LayerKind(window=fields.window(None), **rope)
    return ModelConfig(
        model_type="mixtral",
        intermediate_size=fields.size("intermediate_size"),
        kinds=alike(fields, shape["num_layers"], kind),
        experts=fields.size("num_local_experts", 8),
        experts_per_token=fields.size("num_experts_per_tok", 2),
        **shape,
    )


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    return {
        **common_to_hf(config, "MixtralForCausalLM"),
        **rope_to_hf(config.kinds[0]),
        "sliding_window": config.kinds[0].window,
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
    }


def _from_gguf(
    metadata: Fields, sizes: Mapping[str, Any], scaling: RopeScaling | None
) -> dict[str, Any]:
    return one_kind(metadata, sizes, scaling) | experts(metadata)


FAMILY = Family(
    config_from_hf=_from_hf,
    config_to_hf=_to_hf,
    weights=(*BEFORE_MLP, *mixture("block_sparse_moe", "w1", "w3", "w2")),
    gguf=GGUFForm(architecture="llama, experts", particular=_from_gguf, interleaved=True),
)
