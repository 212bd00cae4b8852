"""Is what a draw is said to come to neither too little nor too much?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ste_jax.decoding.sampling import sample
from ste_jax.generation import Sampling
from tests.decoding.near_ties import NEAR, divergence, reachable

PLACE = 4
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 2.0, "top_k": 8},
    {"temperature": 3.0, "top_p": 0.5},
    {"temperature": 2.0, "min_p": 0.1},
    {"temperature": 2.0, "top_k": 20, "top_p": 0.6, "min_p": 0.05},
)


def draw(logits: np.ndarray[Any, Any], keys: jax.Array, sampling: Sampling) -> list[int]:
    rows = len(logits)
    tokens, _ = jax.jit(sample)(
        logits,
        jax.vmap(jax.random.fold_in, (0, None))(keys, PLACE),
        np.full(rows, sampling.temperature, np.float32),
        np.full(rows, sampling.top_k, np.int32),
        np.full(rows, sampling.top_p, np.float32),
        np.full(rows, sampling.min_p, np.float32),
    )
    return np.asarray(tokens).tolist()


def normal(rows: int, vocabulary: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(vocabulary).normal(0, 2, (rows, vocabulary)).astype(np.float32)


@pytest.mark.parametrize("settings", SAMPLINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [17, 300])
def test_without_a_margin_it_is_what_the_sampler_draws(
    settings: dict[str, Any], vocabulary: int
) -> None:
    sampling = Sampling(max_new_tokens=1, **settings)
    logits, keys = normal(25, vocabulary), jax.random.split(jax.random.key(0), 25)
    for one, key, token in zip(logits, keys, draw(logits, keys, sampling), strict=True):
        assert reachable(one, key, PLACE, sampling, near=0.0) == {token}


@pytest.mark.parametrize("settings", SAMPLINGS[1:], ids=str)
def test_equal_logits_are_kept_and_cut_together(settings: dict[str, Any]) -> None:
    sampling = Sampling(max_new_tokens=1, **settings)
    logits, keys = np.round(normal(25, 300)), jax.random.split(jax.random.key(2), 25)
    for one, key, token in zip(logits, keys, draw(logits, keys, sampling), strict=True):
        assert reachable(one, key, PLACE, sampling, near=0.0) == {token}


def test_each_of_two_equal_ones_can_be_refused_but_once() -> None:
    sampling = Sampling(max_new_tokens=1, temperature=1.0, top_p=0.4)
    logits = np.full(20, -30.0, np.float32)
    logits[[3, 9]] = 0.0
    for key in jax.random.split(jax.random.key(4), 5):
        assert reachable(logits, key, PLACE, sampling) == {3, 9}


def moved_is_foreseen(
    sampling: Sampling, logits: np.ndarray[Any, Any], signs: np.ndarray[Any, Any]
) -> bool:
    """Whether logits moved by just less than half a margin lead to other tokens, all of them among
    those that can be reached."""
    rows, near = len(logits), 20 * NEAR  # wide, so that many draws are near-ties
    keys = jax.random.split(jax.random.key(1), rows)
    move = 0.49 * near * signs * (sampling.temperature or 1.0)
    before = draw(logits, keys, sampling)
    after = draw((logits + move).astype(np.float32), keys, sampling)
    other = [i for i in range(rows) if before[i] != after[i]]
    return len(other) > 5 and all(
        {before[i], after[i]} <= reachable(logits[i], keys[i], PLACE, sampling, near) for i in other
    )


@pytest.mark.parametrize("settings", SAMPLINGS, ids=str)
def test_logits_moved_within_the_margin_lead_to_nothing_else(settings: dict[str, Any]) -> None:
    sampling, logits = Sampling(max_new_tokens=1, **settings), normal(4096, 300)
    signs = np.random.default_rng(1).choice([-1, 1], logits.shape)
    assert moved_is_foreseen(sampling, logits, signs)
    # And most draws are certain all the same.
    keys = jax.random.split(jax.random.key(1), 50)
    sizes = [
        len(reachable(one, key, PLACE, sampling))
        for one, key in zip(logits[:50], keys, strict=True)
    ]
    assert sizes.count(1) >= 45


@pytest.mark.parametrize("likelier", [1, -1])
def test_the_share_of_the_likelier_moves_with_them_all(likelier: int) -> None:
    sampling, logits = Sampling(max_new_tokens=1, temperature=3.0, top_p=0.5), normal(4096, 300)
    likeliest = logits > np.quantile(logits, 0.8, axis=1, keepdims=True)
    assert moved_is_foreseen(sampling, logits, np.where(likeliest, likelier, -likelier))


def test_a_single_block_has_the_two_best_sums_to_be_compared() -> None:
    sampling, key = Sampling(max_new_tokens=1, temperature=0.7), jax.random.key(3)
    noise = jax.random.gumbel(
        jax.random.fold_in(jax.random.fold_in(key, PLACE), 0), (129,), mode="high"
    )
    logits = np.asarray(0.7 * (jnp.arange(20) / 20 - noise[1:21]), np.float32)
    # The sums of logit and noise are now 0, 0.05 .. 0.95.
    assert reachable(logits, key, PLACE, sampling, near=0.04) == {19}
    assert reachable(logits, key, PLACE, sampling, near=0.06) == {18, 19}


def test_divergence() -> None:
    assert divergence([1, 2, 3], [1, 2, 3]) is None
    assert divergence([1, 2, 3], [1, 5, 3]) == 1
    assert divergence([1, 2], [1, 2, 3]) == 2
