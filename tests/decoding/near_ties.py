"""Which tokens can a draw come to, if its logits are known only up to rounding?

The sampler's own way from logits to a token is walked with its own noise: what top_k and min_p cut
away, a block of what they keep, a place within the block, and another try where top_p refuses. Each
comparison on the way has a margin. Where that is larger than `NEAR` it can come out in one way
only; where it is smaller, both ways are walked. What is reached by any way is what the draw can
come to. One token: the draw is certain, and a run that drew another was wrong. Several: a near-tie.

`NEAR` bounds what two logits, divided by the temperature, may move against each other: for a draw
without filters from one block, several tokens are reached exactly where the two largest sums of
logit and noise lie within `NEAR`; for a greedy one, where the two largest logits do.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ste_jax.decoding.rows import hash_id, split64
from ste_jax.decoding.sampling import BLOCK, row_keys
from ste_jax.generation import Request, Sampling

NEAR = 1e-3

Array = np.ndarray[Any, Any]


def row_key(request: Request, sample: int) -> jax.Array:
    """The random key of one sample of a request."""
    seed, row = (
        np.array([half], np.uint32) for half in (split64(request.key), hash_id(request.id))
    )
    return row_keys(seed, row, np.array([sample]))[0]


@functools.partial(jax.jit, static_argnames="size")
def _noise(key: jax.Array, place: int, tries: int, size: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(key, place), tries)
    return jax.random.gumbel(key, (size,), mode="high")


def reachable(
    logits: Array, key: jax.Array, place: int, sampling: Sampling, near: float = NEAR
) -> set[int]:
    """The tokens that the draw at `place` of the row of `key` can come to.

    `logits` [V] are float32; with `near` 0 nothing but the draw itself is left.
    """
    logits = logits.astype(np.float64)
    if sampling.temperature == 0.0:
        return set(np.flatnonzero(logits >= logits.max() - near).tolist())
    scores = (logits - logits.max()) / sampling.temperature
    blocks = -(-len(scores) // BLOCK)
    scores = np.pad(scores, (0, blocks * BLOCK - len(scores)), constant_values=-np.inf)
    of_top_k = _kept_by_top_k(scores, sampling.top_k, near)
    of_min_p = _kept_by_min_p(scores, sampling.min_p, near)
    total = tuple(np.exp(scores[which]).sum() for which in of_top_k)
    found: set[int] = set()
    walked: set[frozenset[int]] = set()

    def walk(refused: frozenset[int]) -> None:
        """All ways on after one try for each of `refused`."""
        if refused in walked:
            return
        walked.add(refused)
        noise = np.asarray(_noise(key, place, len(refused), blocks + BLOCK), np.float64)
        # What is still to be drawn is likelier than any that was refused.
        bound = max((scores[token] for token in refused), default=-np.inf)
        surely = of_top_k[0] & of_min_p[0] & (scores > bound + near)
        perhaps = of_top_k[1] & of_min_p[1] & (scores > bound - near)
        perhaps[list(refused)] = False
        for token in _drawn(scores, noise, surely, perhaps, blocks, near):
            taken, not_taken = _judged(scores, token, sampling.top_p, total, near)
            if taken:
                found.add(token)
            if not_taken:
                walk(refused | {token})

    walk(frozenset())
    return found


def _kept_by_top_k(scores: Array, top_k: int, near: float) -> tuple[Array, Array]:
    """Which tokens top_k keeps for certain, and which it can keep; 0 keeps all."""
    if not top_k:
        return np.full(len(scores), True), np.full(len(scores), True)
    ranked, k = np.append(np.sort(scores)[::-1], -np.inf), min(top_k, len(scores))
    last, next_one = ranked[k - 1], ranked[k]
    # A token that even the first one cut away cannot pass has fewer than k above it for certain.
    return (scores >= last) & (scores >= next_one + near), scores >= last - near


def _kept_by_min_p(scores: Array, min_p: float, near: float) -> tuple[Array, Array]:
    """Which tokens min_p keeps for certain, and which it can keep; 0 keeps all."""
    with np.errstate(divide="ignore"):
        least = np.log(min_p)
    return scores >= least + near, scores >= least - near


def _drawn(
    scores: Array, noise: Array, surely: Array, perhaps: Array, blocks: int, near: float
) -> list[int]:
    """The tokens that one try can pick: those of `perhaps` are left in, those of `surely` for
    certain."""
    half = near / 2  # each of two logits may move by so much
    with np.errstate(divide="ignore"):
        least, most = (
            np.log(np.where(which, np.exp(scores), 0.0).reshape(blocks, BLOCK).sum(-1))
            + noise[:blocks]
            for which in (surely, perhaps)
        )
    picked = []
    for block in np.flatnonzero(most + half >= least.max() - half):
        own = slice(block * BLOCK, (block + 1) * BLOCK)
        sums = scores[own] + noise[blocks:]
        highest = np.where(surely[own], sums, -np.inf).max()
        places = np.flatnonzero(perhaps[own] & (sums + half >= highest - half))
        picked += (block * BLOCK + places).tolist()
    return picked


def _judged(
    scores: Array, token: int, top_p: float, total: tuple[float, ...], near: float
) -> tuple[bool, bool]:
    """Whether top_p can take the token, and whether it can refuse it.

    `total` are the least and the most that what top_k keeps can weigh, but for the logits' own
    moves. What is likelier than the token holds a share of that, which these change by at most the
    factor exp(near).
    """
    if top_p >= 1.0:
        return True, False
    surely, perhaps = scores > scores[token] + near, scores > scores[token] - near
    perhaps[token] = False
    weights, spread = np.exp(scores), np.exp(near)
    least, most = total
    takes = weights[surely].sum() < top_p * most * spread
    refuses = weights[perhaps].sum() * spread >= top_p * least
    # Where none can be likelier it is the likeliest, which is always taken.
    return bool(takes), bool(refuses and perhaps.any())


def divergence(one: Sequence[int], two: Sequence[int]) -> int | None:
    """The first place where two samples differ; None if they do not."""
    places = (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    shorter = min(len(one), len(two))
    return next(places, None if len(one) == len(two) else shorter)
