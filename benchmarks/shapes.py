"""Which shapes do the measured models have?"""

from __future__ import annotations

from pathlib import Path

import yaml

from ste_jax.model_io.families import FAMILIES
from ste_jax.models.config import ModelConfig

PUBLISHED = Path(__file__).parents[1] / "configs" / "models" / "published.yaml"


def published(name: str) -> ModelConfig:
    """The shape of a released model, by its name in `configs/models/published.yaml`."""
    values = yaml.safe_load(PUBLISHED.read_text())[name]["config"]
    return FAMILIES[values["model_type"]].read_config(values, name)


def shape_of(source: str) -> ModelConfig:
    """The shape of the released model that a config names, as `hf:OWNER/Qwen3-8B`."""
    name = source.rpartition("/")[2].lower().removesuffix("-instruct").removesuffix("-it")
    (found,) = (each for each in yaml.safe_load(PUBLISHED.read_text()) if each.lower() == name)
    return published(found)
