"""Attention over parts is attention over everything, exactly."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.models.attention import Part, Seen, attention, causal


def plain(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Attention as the textbook has it, in float64, one query at a time."""
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(q.shape[:3]):
        kv = h * k.shape[2] // q.shape[2]
        see = np.flatnonzero(mask[b % mask.shape[0], t])
        if len(see):
            score = k[b, see, kv].astype(np.float64) @ q[b, t, h] * 0.3
            weight = np.exp(score - score.max())
            out[b, t, h] = weight @ v[b, see, kv] / weight.sum()
    return out


# One compilation per shape is what takes the time here, so shapes are few and masks many.
jitted = jax.jit(attention, static_argnums=2)


@pytest.mark.parametrize(
    ("batch", "time", "kv_heads", "group", "cuts"),
    [(1, 1, 1, 1, [0, 1]), (3, 2, 2, 3, [0, 4, 5, 8]), (2, 5, 3, 1, [0, 5, 7])],
)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.1, 0.5, 1.0]), whole=st.booleans())
def test_any_cut_into_parts_equals_the_textbook(
    batch: int,
    time: int,
    kv_heads: int,
    group: int,
    cuts: list[int],
    seed: int,
    share: float,
    whole: bool,
) -> None:
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(batch, time, kv_heads * group, 4)).astype(np.float32) * 5
    k, v = rng.normal(size=(2, batch, cuts[-1], kv_heads, 4)).astype(np.float32)
    mask = rng.random((1 if whole else batch, time, cuts[-1])) < share
    parts = [Part(k[:, a:b], v[:, a:b], mask[:, :, a:b]) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_allclose(jitted(q, parts, Seen(0.3)), plain(q, k, v, mask), atol=2e-5)


def test_a_shared_part_serves_consecutive_rows() -> None:
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(6, 2, 4, 8)), jnp.float32)
    shared = jnp.asarray(rng.normal(size=(2, 2, 5, 2, 8)), jnp.float32)  # k and v of two prompts
    own = jnp.asarray(rng.normal(size=(2, 6, 3, 2, 8)), jnp.float32)
    shared_mask = jnp.asarray(rng.random((6, 2, 5)) < 0.7)
    own_mask = jnp.ones((1, 2, 3), bool)
    copied = jnp.repeat(shared, 3, axis=1)
    np.testing.assert_allclose(
        jitted(q, [Part(*shared, shared_mask), Part(*own, own_mask)], Seen(0.3)),
        jitted(q, [Part(*copied, shared_mask), Part(*own, own_mask)], Seen(0.3)),
        atol=1e-6,
    )


def test_nothing_to_see_gives_zeros_and_finite_gradients() -> None:
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 4, 2, 8))
    segments = jnp.array([[1, 1, 0, 0]])

    @jax.jit
    def run(q, k, v):
        out = causal(segments, jnp.array([[0, 1, 0, 1]]))(q, k, v, None, Seen(0.35))
        return out.sum(), out

    (_, out), gradients = jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    assert (np.asarray(out[:, 2:]) == 0).all()
    assert (np.asarray(out[:, :2]) != 0).all()
    assert all(np.isfinite(g).all() for g in gradients)
    assert all((np.asarray(g[:, 2:]) == 0).all() for g in gradients), "padding has a gradient"


def test_large_scores_do_not_overflow() -> None:
    q = jnp.full((1, 1, 1, 4), 200.0)
    k = jnp.stack([jnp.full((1, 1, 4), 200.0), jnp.full((1, 1, 4), -200.0)], axis=1)
    v = jnp.stack([jnp.full((1, 1, 4), 3.0), jnp.full((1, 1, 4), 7.0)], axis=1)
    whole = jitted(q, [Part(k, v, jnp.ones((1, 1, 2), bool))], Seen(1.0))
    low = Part(k[:, 1:], v[:, 1:], jnp.ones((1, 1, 1), bool))
    np.testing.assert_array_equal(whole, 3.0)
    np.testing.assert_array_equal(jitted(q, [low], Seen(1.0)), 7.0)


def test_a_window_and_a_cap_as_the_textbook_has_them() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 9, 2, 4)).astype(np.float32) * 3 for _ in range(3))
    places = jnp.arange(9)[None]
    found = causal(jnp.ones_like(places), places)(q, k, v, None, Seen(0.7, window=3, softcap=1.5))
    for place, head in np.ndindex(9, 2):
        see = slice(max(0, place - 2), place + 1)
        score = 1.5 * np.tanh(0.7 * k[0, see, head].astype(np.float64) @ q[0, place, head] / 1.5)
        weight = np.exp(score) / np.exp(score).sum()
        np.testing.assert_allclose(found[0, place, head], weight @ v[0, see, head], atol=1e-5)
