"""Gemma 2: soft caps; local and global attention in turn."""

from __future__ import annotations

from typing import Any

from ste_jax.model_io.families.family import Family
from ste_jax.model_io.families.gemma import DEFAULTS, WEIGHTS, gemma_to_hf, read_gemma
from ste_jax.model_io.families.hf_fields import read_shape
from ste_jax.model_io.families.layer_kinds import GLOBAL, LOCAL, typed_layers
from ste_jax.model_io.families.rope import read_rope, rope_to_hf
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import LayerKind, ModelConfig


def _from_hf(fields: Fields) -> ModelConfig:
    shape = read_shape(fields, vocab_size=256000, max_position_embeddings=8192, **DEFAULTS)
    rope = read_rope(fields, shape["max_position"])
    window = fields.window(4096, needed=True)
    # The published files give the window under a second name, too.
    fields.only("sliding_window_size", window)
    kinds = typed_layers(
        fields,
        shape["num_layers"],
        lambda layer: GLOBAL if layer % 2 else LOCAL,
        {LOCAL: LayerKind(window=window, **rope), GLOBAL: LayerKind(**rope)},
    )
    return ModelConfig(
        model_type="gemma2",
        intermediate_size=fields.size("intermediate_size", 9216),
        kinds=kinds,
        attention_softcap=fields.optional("attn_logit_softcapping", 50.0),
        final_softcap=fields.optional("final_logit_softcapping", 30.0),
        **read_gemma(fields),
        **shape,
    )


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    return {**gemma_to_hf(config, "Gemma2ForCausalLM"), **rope_to_hf(config.kinds[0])}


FAMILY = Family(
    config_from_hf=_from_hf,
    config_to_hf=_to_hf,
    weights=WEIGHTS,
)
