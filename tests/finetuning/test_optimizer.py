"""The rate goes up, then down; what is decayed is what should be."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ste_jax.config import FinetuneKnobs
from ste_jax.finetuning.optimizer import learning_rate, make_optimizer

KNOBS = FinetuneKnobs(learning_rate=1.0, warmup_steps=4, final_learning_rate_fraction=0.1)


def test_the_schedule() -> None:
    rates = [float(learning_rate(KNOBS, 24, step)) for step in range(25)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[14] == pytest.approx(0.55)  # halfway down the cosine
    assert rates[24] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))


def test_without_warmup_it_starts_at_the_peak() -> None:
    knobs = dataclasses.replace(KNOBS, warmup_steps=0)
    assert float(learning_rate(knobs, 10, 0)) == 1.0


def test_a_run_shorter_than_its_warmup_only_warms_up() -> None:
    assert float(learning_rate(KNOBS, 2, 1)) == 0.5


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    optimizer = make_optimizer(dataclasses.replace(KNOBS, weight_decay=0.5, warmup_steps=0), 10)
    params = {
        name: jnp.ones((2, 3))
        for name in ("embed", "final_norm", "layers.0.q", "layers.0.mlp_norm", "layers.0.q_bias")
    }
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    moved = {name for name, update in updates.items() if np.any(update)}
    assert moved == {"embed", "layers.0.q"}
    np.testing.assert_allclose(updates["embed"], -0.5)


def test_clipping_scales_the_gradient_to_the_norm() -> None:
    params = {"embed": jnp.zeros((2, 2))}
    grads = {"embed": jnp.full((2, 2), 3.0)}  # its norm is 6
    for clip, first_moment in ((0.0, 0.3), (1.5, 0.3 / 4), (100.0, 0.3)):
        optimizer = make_optimizer(dataclasses.replace(KNOBS, clip_norm=clip), 10)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        moment = next(leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 2))
        np.testing.assert_allclose(moment, first_moment, rtol=1e-5)
