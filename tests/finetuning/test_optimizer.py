"""The rate goes up, then down; what is decayed is what should be."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ste_jax.config.schema import FinetuneKnobs
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.optimizer import learning_rate, make_optimizer

KNOBS = TrainingKnobs.of(
    FinetuneKnobs(learning_rate=1.0, warmup_steps=4, final_learning_rate_fraction=0.1)
)


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


def test_the_other_schedules() -> None:
    linear = dataclasses.replace(KNOBS, schedule="linear")
    rates = [float(learning_rate(linear, 24, step)) for step in range(25)]
    assert rates[3:5] == pytest.approx([1.0, 1.0])
    assert rates[14] == pytest.approx(0.55)
    assert rates[24] == pytest.approx(0.1)
    constant = dataclasses.replace(KNOBS, schedule="constant")
    rates = [float(learning_rate(constant, 24, step)) for step in range(25)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert set(rates[4:]) == {1.0}


def test_a_knob_that_is_new_leaves_what_was_made_without_it_as_it_is() -> None:
    assert "schedule_steps" not in KNOBS.identity()
    assert dataclasses.replace(KNOBS, schedule_steps=9).identity()["schedule_steps"] == 9


def test_of_a_schedule_longer_than_the_training_only_the_beginning_is_used() -> None:
    knobs = dataclasses.replace(KNOBS, schedule_steps=24)
    whole = [float(learning_rate(KNOBS, 24, step)) for step in range(12)]
    assert [float(learning_rate(knobs, 12, step)) for step in range(12)] == whole


def run(knobs: TrainingKnobs, steps: int = 5) -> tuple[dict[str, jax.Array], Any]:
    """Parameters and state after some steps of given gradients."""
    optimizer = make_optimizer(knobs, 10)
    draw = np.random.default_rng(0)
    params = {"layers.0.up": jnp.asarray(draw.normal(size=(2, 130, 140)), jnp.float32)}
    state = optimizer.init(params)
    for _ in range(steps):
        grads = jax.tree.map(
            lambda x: jnp.asarray(0.1 * draw.normal(size=x.shape), jnp.float32), params
        )
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_moments_of_sixteen_bits_move_nearly_alike() -> None:
    knobs = dataclasses.replace(KNOBS, learning_rate=1e-2, warmup_steps=0)
    wide, _ = run(knobs)
    narrow, state = run(dataclasses.replace(knobs, moments_dtype="bfloat16"))
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert kinds == {jnp.dtype(jnp.bfloat16)}
    start, _ = run(knobs, steps=0)
    moved = wide["layers.0.up"] - start["layers.0.up"]
    off = narrow["layers.0.up"] - wide["layers.0.up"]
    assert float(jnp.linalg.norm(off) / jnp.linalg.norm(moved)) < 0.01


def test_adafactor_keeps_sums_of_rows_and_columns() -> None:
    knobs = dataclasses.replace(
        KNOBS, optimizer="adafactor", learning_rate=1e-2, warmup_steps=0, weight_decay=0.0
    )
    params, state = run(knobs)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes[-1] == 2 * 140  # where AdamW keeps twice 2 * 130 * 140
    # by optax alone, at the rates of our schedule
    optimizer = optax.adafactor(1.0, multiply_by_parameter_scale=False)
    draw = np.random.default_rng(0)
    want = {"layers.0.up": jnp.asarray(draw.normal(size=(2, 130, 140)), jnp.float32)}
    theirs = optimizer.init(want)
    for step in range(5):
        grads = jax.tree.map(
            lambda x: jnp.asarray(0.1 * draw.normal(size=x.shape), jnp.float32), want
        )
        updates, theirs = optimizer.update(grads, theirs, want)
        rate = learning_rate(knobs, 10, step)
        want = optax.apply_updates(want, jax.tree.map(lambda u, r=rate: r * u, updates))
    np.testing.assert_allclose(params["layers.0.up"], want["layers.0.up"], atol=1e-6)


def test_adafactor_decays_matrices_as_adamw_does() -> None:
    knobs = dataclasses.replace(
        KNOBS, optimizer="adafactor", weight_decay=0.5, warmup_steps=0, learning_rate=0.1
    )
    optimizer = make_optimizer(knobs, 10)
    params = {"layers.0.up": jnp.ones((2, 3)), "final_norm": jnp.ones(3)}
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["layers.0.up"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["final_norm"], 0.0)


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
