"""Which tokens can a draw come to, if its logits are known only up to rounding?

The sampler's own way from logits to a token is walked with its own noise: blocks, a place within
the block, the filters, and another try where they refuse. Each comparison on the way has a margin.
Where that is larger than `NEAR` it can come out in one way only; where it is smaller, both ways are
walked. What is reached by any way is what the draw can come to. One token: the draw is certain, and
a run that drew another was wrong. Several: a near-tie.

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
from ste_jax.generators.protocol import Request, Sampling

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
    found: set[int] = set()
    walked: set[tuple[int, int]] = set()

    def walk(tries: int, refused: int) -> None:
        """All ways on after `refused` (-1: nothing yet), the last of so many tries."""
        if (tries, refused) in walked:
            return
        walked.add((tries, refused))
        noise = np.asarray(_noise(key, place, tries, blocks + BLOCK), np.float64)
        bound = scores[refused] if refused >= 0 else -np.inf
        surely, perhaps = scores > bound + near, scores > bound - near
        if refused >= 0:
            perhaps[refused] = False
        for token in _drawn(scores, noise, surely, perhaps, blocks, near):
            taken, not_taken = _judged(scores, token, sampling, near)
            if taken:
                found.add(token)
            if not_taken:
                walk(tries + 1, token)

    walk(0, -1)
    return found


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


def _judged(scores: Array, token: int, sampling: Sampling, near: float) -> tuple[bool, bool]:
    """Whether the filters can take the token, and whether they can refuse it."""
    surely, perhaps = scores > scores[token] + near, scores > scores[token] - near
    perhaps[token] = False
    weights = np.exp(scores)
    takes, refuses = [], []
    if sampling.top_k:
        takes.append(surely.sum() < sampling.top_k)
        refuses.append(perhaps.sum() >= sampling.top_k)
    if sampling.top_p < 1.0:
        least, most = _of_top_k(scores, sampling.top_k, near)
        spread = np.exp(near)
        takes.append(weights[surely].sum() < sampling.top_p * most * spread)
        refuses.append(weights[perhaps].sum() * spread >= sampling.top_p * least)
    if sampling.min_p:
        takes.append(scores[token] >= np.log(sampling.min_p) - near)
        refuses.append(scores[token] < np.log(sampling.min_p) + near)
    # The likeliest is always taken.
    return all(takes) or not surely.any(), any(refuses) and bool(perhaps.any())


def _of_top_k(scores: Array, top_k: int, near: float) -> tuple[float, float]:
    """Bounds of the total weight of what top_k keeps; 0 keeps all."""
    weights = np.exp(scores)
    if not top_k:
        return weights.sum(), weights.sum()
    last = np.sort(scores)[::-1][min(top_k, len(scores)) - 1]
    surely = np.sort(weights)[::-1][:top_k].sum()
    return surely, weights[scores >= last - near].sum()


def divergence(one: Sequence[int], two: Sequence[int]) -> int | None:
    """The first place where two samples differ; None if they do not."""
    places = (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    shorter = min(len(one), len(two))
    return next(places, None if len(one) == len(two) else shorter)
