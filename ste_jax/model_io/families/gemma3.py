"""Gemma 3 that also sees images; only its text model, a `gemma3_text`, is read."""

from __future__ import annotations

from ste_jax.model_io.families import gemma3_text
from ste_jax.model_io.families.family import Family
from ste_jax.model_io.families.hf_fields import hf_fields
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import ModelConfig


def _from_hf(fields: Fields) -> ModelConfig:
    fields.need("text_config")
    text = hf_fields(fields.group("text_config"), f"{fields.where}: text_config")
    for key in (
        "boi_token_id",
        "boi_token_index",
        "eoi_token_id",
        "eoi_token_index",
        "image_token_id",
        "image_token_index",
        "mm_tokens_per_image",
        "vision_config",
    ):
        fields.take(key)  # of images, which are not read here
        text.take(key)
    config = gemma3_text.FAMILY.config_from_hf(text)
    text.finish()
    if fields.flag("tie_word_embeddings", config.tie_embeddings) != config.tie_embeddings:
        raise fields.refuse("tie_word_embeddings", "and text_config says otherwise")
    return config


FAMILY = Family(
    config_from_hf=_from_hf,
    config_to_hf=gemma3_text.FAMILY.config_to_hf,
    weights=gemma3_text.FAMILY.weights,
    root="language_model.",
    foreign=("vision_tower.", "multi_modal_projector."),
)
