"""Released models have the parameters that their pages state; nothing is allocated."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import yaml
from flax import nnx

from benchmarks.shapes import PUBLISHED, published
from ste_jax.models.decoder import abstract_decoder

RELEASED: dict[str, dict[str, Any]] = yaml.safe_load(PUBLISHED.read_text())


@pytest.mark.parametrize("name", RELEASED)
def test_the_count_is_the_published_one(name: str) -> None:
    config = published(name)
    assert config.parameter_count() == RELEASED[name]["parameters"]


@pytest.mark.parametrize("name", ["Llama-3.1-405B", "Mixtral-8x22B", "Gemma-3-27B"])
def test_the_arrays_are_as_many(name: str) -> None:
    config = published(name)
    state = nnx.state(abstract_decoder(config, param_dtype=jnp.bfloat16))
    leaves = jax.tree.leaves(state)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == RELEASED[name]["parameters"]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
