"""Released models have the parameters that their pages state; nothing is allocated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import yaml
from flax import nnx

from ste_jax.models.decoder import abstract_decoder
from ste_jax.models.families import FAMILIES

PUBLISHED: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[2] / "configs" / "models" / "published.yaml").read_text()
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_count_is_the_published_one(name: str) -> None:
    values = PUBLISHED[name]["config"]
    config = FAMILIES[values["model_type"]].read_config(values, name)
    assert config.parameter_count() == PUBLISHED[name]["parameters"]


@pytest.mark.parametrize("name", ["Llama-3.1-405B", "Mixtral-8x22B", "Gemma-3-27B"])
def test_the_arrays_are_as_many(name: str) -> None:
    values = PUBLISHED[name]["config"]
    config = FAMILIES[values["model_type"]].read_config(values, name)
    state = nnx.state(abstract_decoder(config, param_dtype=jnp.bfloat16))
    leaves = jax.tree.leaves(state)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == PUBLISHED[name]["parameters"]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
