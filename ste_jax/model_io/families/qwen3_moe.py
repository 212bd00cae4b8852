"""Qwen 3 with mixtures of experts in all layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ste_jax.model_io.families.family import Family, GGUFForm, experts, one_kind
from ste_jax.model_io.families.hf_fields import common_to_hf, only_silu, read_shape
from ste_jax.model_io.families.layer_kinds import alike
from ste_jax.model_io.families.qwen_layers import qwen_window
from ste_jax.model_io.families.rope import read_rope, rope_to_hf
from ste_jax.model_io.families.weights import BEFORE_MLP, mixture
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import LayerKind, ModelConfig, RopeScaling


def _from_hf(fields: Fields) -> ModelConfig:
    only_silu(fields)
    shape = read_shape(fields, num_key_value_heads=4, max_position_embeddings=32768)
    fields.only("decoder_sparse_step", 1)
    if fields.take("mlp_only_layers"):
        raise fields.refuse("mlp_only_layers", "and only mixtures in all layers are supported")
    # The inner size of layers without experts, of which there are none.
    fields.take("intermediate_size")
    kind = LayerKind(window=qwen_window(fields), **read_rope(fields, shape["max_position"]))
    bias = fields.flag("attention_bias")
    count = "num_experts" if fields.take("num_experts") else "num_local_experts"
    fields.take("num_local_experts")
    return ModelConfig(
        model_type="qwen3_moe",
        intermediate_size=fields.size("moe_intermediate_size", 768),
        kinds=alike(fields, shape["num_layers"], kind),
        qk_norm=True,
        qkv_bias=bias,
        o_bias=bias,
        experts=fields.size(count, 128),
        experts_per_token=fields.size("num_experts_per_tok", 8),
        normalize_experts=fields.flag("norm_topk_prob"),
        **shape,
    )


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    window = config.kinds[0].window
    return {
        **common_to_hf(config, "Qwen3MoeForCausalLM"),
        **rope_to_hf(config.kinds[0]),
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "attention_bias": config.qkv_bias,
        "moe_intermediate_size": config.intermediate_size,
        "num_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": config.normalize_experts,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _from_gguf(
    metadata: Fields, sizes: Mapping[str, Any], scaling: RopeScaling | None
) -> dict[str, Any]:
    return {
        **one_kind(metadata, sizes, scaling),
        **experts(metadata),
        "qk_norm": True,
        "intermediate_size": metadata.size("expert_feed_forward_length"),
    }


FAMILY = Family(
    config_from_hf=_from_hf,
    config_to_hf=_to_hf,
    weights=(*BEFORE_MLP, *mixture("mlp", "gate_proj", "up_proj", "down_proj")),
    gguf=GGUFForm(architecture="qwen3moe", particular=_from_gguf),
)
