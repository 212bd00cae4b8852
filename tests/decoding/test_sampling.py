"""Is what is drawn distributed as asked, whatever the filters and the neighbours?"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ste_jax.decoding.sampling import row_keys, sample
from tests.compiling import OPTIMIZED

Array = np.ndarray[Any, Any]


def target(
    logits: Array, temperature: float, top_k: int, top_p: float, min_p: float = 0.0
) -> Array:
    """The distribution by its definition: sorted, cut, normalized; in float64."""
    weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    order = np.sort(weights)[::-1]
    if top_k:
        weights = np.where(weights >= order[min(top_k, len(order)) - 1], weights, 0.0)
    share = weights / weights.sum()
    if top_p < 1.0:
        likelier = np.array([share[share > one].sum() for one in share])
        kept = (likelier < top_p) | (share == share.max())
        share = np.where(kept, share, 0.0)
    share = np.where(weights >= min_p, share, 0.0)
    return share / share.sum()


def of_transformers(
    logits: Array, temperature: float, top_k: int, top_p: float, min_p: float
) -> Array:
    """The distribution that `transformers` draws from."""
    filters: list[Any] = [TemperatureLogitsWarper(temperature)]
    filters += [TopKLogitsWarper(top_k)] if top_k else []
    filters += [TopPLogitsWarper(top_p)] if top_p < 1.0 else []
    filters += [MinPLogitsWarper(min_p)] if min_p else []
    scores = torch.from_numpy(logits)[None]
    for one in filters:
        scores = one(None, scores)
    return np.asarray(torch.softmax(scores[0], -1))


def assert_drawn_from(share: Array, counts: Array, least: int) -> int:
    """That `counts` [V] are of draws from the distribution `share` [V]: Pearson's statistic, over
    the tokens of which at least `least` are expected, and the others taken together, is at most
    five standard deviations of a chi-square variable above its mean. Returns its degrees of
    freedom."""
    assert counts[share == 0].sum() == 0
    expected = share * counts.sum()
    common = expected >= least
    seen = np.append(counts[common], counts[~common].sum())
    meant = np.append(expected[common], expected[~common].sum())
    seen, meant = seen[meant > 0], meant[meant > 0]
    statistic = ((seen - meant) ** 2 / meant).sum()
    freedom = len(seen) - 1
    assert statistic < freedom + 5 * np.sqrt(2 * max(freedom, 1))
    return freedom


drawing = jax.jit(sample, static_argnames="columns", compiler_options=OPTIMIZED)


def draw(
    logits: Array,
    number: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float = 0.0,
    *,
    columns: bool = False,
) -> Array:
    rows = jnp.broadcast_to(jnp.asarray(logits), (number, len(logits)))
    keys = jax.random.split(jax.random.key(7), number)
    full = lambda value, dtype: jnp.full(number, value, dtype)  # noqa: E731
    tokens, _ = drawing(
        rows,
        keys,
        full(temperature, jnp.float32),
        full(top_k, jnp.int32),
        full(top_p, jnp.float32),
        full(min_p, jnp.float32),
        columns=columns,
    )
    return np.asarray(tokens)


@pytest.mark.parametrize(("vocab", "columns"), [(17, True), (300, True), (300, False)])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 0, 0.9, 0.0),
        (1.5, 5, 1.0, 0.0),
        (0.7, 12, 0.8, 0.0),
        (3.0, 0, 0.3, 0.0),
        (1.0, 0, 1.0, 0.05),
        (1.5, 9, 1.0, 0.1),
        (2.0, 0, 0.9, 0.2),
        (2.0, 20, 0.95, 0.02),
    ],
)
def test_the_frequencies_are_those_of_the_sorted_definition(
    vocab: int, columns: bool, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(vocab).normal(0, 2, vocab).astype(np.float32)
    number = 20_000
    share = target(logits, temperature, top_k, top_p, min_p)
    np.testing.assert_allclose(
        share, of_transformers(logits, temperature, top_k, top_p, min_p), atol=1e-5
    )
    drawn = draw(logits, number, temperature, top_k, top_p, min_p, columns=columns)
    counts = np.bincount(drawn, minlength=vocab)
    assert_drawn_from(share, counts, 10)


@settings(deadline=None, max_examples=30)
@given(
    levels=st.lists(st.integers(-4, 4), min_size=9, max_size=9),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.05, 0.4, 0.6, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    columns=st.booleans(),
)
def test_exactly_the_tokens_that_are_to_be_kept_are_drawn(
    levels: list[int], temperature: float, top_k: int, top_p: float, min_p: float, columns: bool
) -> None:
    # Few levels make ties: equally likely tokens are kept or cut together.
    logits = np.array(levels, np.float32) * 0.4
    share = target(logits, temperature, top_k, top_p, min_p)
    drawn = draw(logits, 2000, temperature, top_k, top_p, min_p, columns=columns)
    assert set(drawn.tolist()) <= set(np.flatnonzero(share).tolist())
    assert set(np.flatnonzero(share > 0.02).tolist()) <= set(drawn.tolist())


@pytest.mark.parametrize("columns", [False, True])
def test_a_row_does_not_depend_on_its_place_or_its_neighbours(columns: bool) -> None:
    number, vocab = 12, 200
    draws = np.random.default_rng(0)
    logits = jnp.asarray(draws.normal(0, 2, (number, vocab)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), number)
    temperature = jnp.asarray(draws.choice([0.0, 0.7, 2.0], number), jnp.float32)
    top_k = jnp.asarray(draws.choice([0, 3, 50], number), jnp.int32)
    top_p = jnp.asarray(draws.choice([0.5, 0.9, 1.0], number), jnp.float32)
    min_p = jnp.asarray(draws.choice([0.0, 0.1], number), jnp.float32)
    run = functools.partial(drawing, columns=columns)
    tokens, logprobs = run(logits, keys, temperature, top_k, top_p, min_p)
    order = draws.permutation(number)
    moved = run(
        logits[order], keys[order], temperature[order], top_k[order], top_p[order], min_p[order]
    )
    np.testing.assert_array_equal(tokens[order], moved[0])
    np.testing.assert_array_equal(logprobs[order], moved[1])
    others = jnp.asarray(draws.normal(0, 9, (number, vocab)), jnp.float32).at[5].set(logits[5])
    other_p = jnp.full(number, 0.2).at[5].set(top_p[5])
    beside = run(others, keys, temperature, top_k, other_p, min_p)
    assert (tokens[5], logprobs[5]) == (beside[0][5], beside[1][5])


@pytest.mark.parametrize("columns", [False, True])
def test_greedy_takes_the_first_of_the_likeliest_and_tells_the_plain_logprob(
    columns: bool,
) -> None:
    logits = jnp.asarray([[0.0, 3.0, 3.0, -1.0], [5.0, 1.0, 2.0, 0.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    zero = jnp.zeros(2)
    tokens, logprobs = sample(
        logits, keys, zero, jnp.zeros(2, jnp.int32), zero + 0.5, zero, columns=columns
    )
    assert tokens.tolist() == [1, 0]
    want = jax.nn.log_softmax(logits)[jnp.arange(2), tokens]
    np.testing.assert_allclose(logprobs, want, rtol=1e-5)


def test_the_logprob_is_of_the_model_not_of_the_filtered_distribution() -> None:
    logits = jnp.asarray(np.random.default_rng(3).normal(0, 2, (1, 40)), jnp.float32)
    one = jnp.ones(1)
    tokens, logprobs = sample(
        logits,
        jax.random.split(jax.random.key(0), 1),
        one * 0.5,
        jnp.full(1, 3),
        one * 0.5,
        0 * one,
    )
    assert logprobs[0] == pytest.approx(float(jax.nn.log_softmax(logits[0])[tokens[0]]), abs=1e-6)


def test_logits_that_are_not_finite_end_the_draw_and_show_in_the_logprob() -> None:
    bad = jnp.full((3, 40), jnp.nan).at[1].set(0.0).at[2].set(jnp.inf)
    one = jnp.ones(3)
    keys = jax.random.split(jax.random.key(0), 3)
    _, logprobs = jax.jit(sample)(bad, keys, one, jnp.zeros(3, jnp.int32), one * 0.9, one * 0.1)
    assert jnp.isfinite(logprobs).tolist() == [False, True, False]


def test_every_part_of_a_rows_name_changes_its_key() -> None:
    seeds = jnp.asarray([[0, 1], [1, 1], [0, 2], [0, 1], [0, 1], [0, 1]], jnp.uint32)
    ids = jnp.asarray([[5, 6], [5, 6], [5, 6], [4, 6], [5, 7], [5, 6]], jnp.uint32)
    keys = row_keys(seeds, ids, jnp.asarray([0, 0, 0, 0, 0, 1]))
    assert len({tuple(key) for key in jax.random.key_data(keys).tolist()}) == 6
