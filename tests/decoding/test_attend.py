"""Is attention over several stretches one softmax over all of them?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ste_jax.decoding.attend import decode_attend, merge, partial_attention, shared_prefix_attend
from ste_jax.models.attention import Seen

Array = np.ndarray[Any, Any]
HEADS, KV_HEADS, SIZE = 6, 2, 4
PLAIN = Seen(SIZE**-0.5)
CAPPED = Seen(0.3, softcap=1.2)


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(0, 1.5, shape).astype(np.float32)


def plain(q: Array, k: Array, v: Array, seen: Seen = PLAIN) -> Array:
    """One query [H,d] over the last keys and values of [S,K,d] that it sees, in float64."""
    k, v = (x[-seen.window :] if seen.window else x for x in (k, v))
    out = []
    for head in range(HEADS):
        keys, values = (x[:, head // (HEADS // KV_HEADS)].astype(np.float64) for x in (k, v))
        scores = keys @ q[head] * seen.scale
        if seen.softcap:
            scores = seen.softcap * np.tanh(scores / seen.softcap)
        weights = np.exp(scores - scores.max())
        out.append(weights @ values / weights.sum())
    return np.array(out)


def test_merged_stretches_are_one_softmax() -> None:
    q, k, v = normal(0, 5, 4), normal(1, 9, 4), normal(2, 9, 4)
    whole = partial_attention(q, k, v, PLAIN)
    parts = [partial_attention(q, k[a:b], v[a:b], PLAIN) for a, b in ((0, 2), (2, 3), (3, 9))]
    merged = merge(parts)
    np.testing.assert_allclose(merged.mixed / merged.total, whole.mixed / whole.total, rtol=1e-5)


def test_a_stretch_of_which_nothing_is_seen_changes_no_bit() -> None:
    q, k, v = normal(0, 5, 4), normal(1, 9, 4), normal(2, 9, 4)
    whole = partial_attention(q, k, v, PLAIN)
    unseen = partial_attention(q, k, v, PLAIN, jnp.zeros((1, 9), bool))
    for parts in ([whole, unseen], [unseen, whole]):
        merged = merge(parts)
        np.testing.assert_array_equal(merged.mixed, whole.mixed)
        np.testing.assert_array_equal(merged.total, whole.total)


def last(x: Array, length: int, room: int) -> Array:
    """The last `room` of the first `length` along the first axis, then zeros."""
    out = np.zeros((room, *x.shape[1:]), x.dtype)
    kept = x[max(0, length - room) : length]
    out[: len(kept)] = kept
    return out


def ring(x: Array, length: int, room: int) -> Array:
    """The first `length` along the first axis, one after another around a ring."""
    out = np.zeros((room, *x.shape[1:]), x.dtype)
    for index in range(length):
        out[index % room] = x[index]
    return out


def in_blocks(x: Array, block: int, seen: Seen) -> list[Array]:
    """[G,N,S,K,d] as a layer's blocks of S; a ring is one."""
    return [x] if seen.window else np.split(x, range(block, x.shape[2], block), axis=2)


@pytest.mark.parametrize(
    ("seen", "room"),
    [
        (PLAIN, (7, 5)),
        (CAPPED, (7, 5)),
        (PLAIN._replace(window=4), (4, 4)),
        (CAPPED._replace(window=6), (6, 5)),
        (PLAIN._replace(window=1), (1, 1)),
    ],
    ids=["plain", "capped", "window", "window-longer-than-the-past", "itself"],
)
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "not-transposed"])
@pytest.mark.parametrize("block", [2, 8], ids=["blocks", "one-block"])
def test_a_decoding_step_sees_its_prompt_its_past_and_itself(
    block: int,
    transposed: bool,
    seen: Seen,
    room: tuple[int, int],
) -> None:
    groups, rows, prompt, past = 2, 3, 7, 5
    batch = groups * rows
    q = normal(0, batch, 1, HEADS, SIZE)
    own = normal(1, batch, 1, KV_HEADS, SIZE), normal(2, batch, 1, KV_HEADS, SIZE)
    prompts = normal(3, 2, groups, prompt, KV_HEADS, SIZE)
    pasts = normal(4, 2, groups, rows, past, KV_HEADS, SIZE)
    length, filled = np.array([7, 0]), np.array([[0, 2, 5], [1, 0, 3]])

    kept = np.stack([[last(x[g], length[g], room[0]) for g in range(groups)] for x in prompts])
    rings = np.stack(
        [
            [[ring(x[g, r], filled[g, r], room[1]) for r in range(rows)] for g in range(groups)]
            for x in pasts
        ]
    )
    cache = {
        "prefix_k": kept[0].transpose((0, 2, 3, 1) if transposed else (0, 2, 1, 3)),
        "prefix_v": kept[1].transpose(0, 2, 1, 3),
        "pasts": [
            {
                "k": k.transpose((0, 1, 3, 4, 2) if transposed else (0, 1, 3, 2, 4)),
                "v": v.transpose(0, 1, 3, 2, 4),
            }
            for k, v in zip(*(in_blocks(x, block, seen) for x in rings), strict=True)
        ],
    }
    attend = decode_attend(
        groups, jnp.asarray(length), jnp.asarray(filled), keys_transposed=transposed
    )
    out = jax.jit(attend, static_argnums=4)(q, *own, cache, seen)
    for group in range(groups):
        for row in range(rows):
            index = group * rows + row
            keys, values = (
                np.concatenate(
                    [
                        prompts[which, group, : length[group]],
                        pasts[which, group, row, : filled[group, row]],
                        own[which][index],
                    ]
                )
                for which in range(2)
            )
            want = plain(q[index, 0], keys, values, seen)
            np.testing.assert_allclose(out[index, 0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seen", [PLAIN, CAPPED._replace(window=4)], ids=["plain", "window"])
@pytest.mark.parametrize("length", [0, 1, 4, 6, 8])
def test_rows_over_a_shared_prefix(length: int, seen: Seen) -> None:
    rows, time, chunk = 3, 5, 4
    q = normal(0, rows, time, HEADS, SIZE)
    k, v = normal(1, rows, time, KV_HEADS, SIZE), normal(2, rows, time, KV_HEADS, SIZE)
    cache = {"k": normal(3, KV_HEADS, 8, SIZE), "v": normal(4, KV_HEADS, 8, SIZE)}

    def run(cache: Any) -> Any:
        attend = shared_prefix_attend(jnp.int32(length), chunk)
        return jax.jit(attend, static_argnums=4)(q, k, v, cache, seen)

    out = run(cache)
    for row in range(rows):
        for place in range(time):
            keys, values = (
                np.concatenate([cache[name][:, :length].swapaxes(0, 1), own[row, : place + 1]])
                for name, own in (("k", k), ("v", v))
            )
            want = plain(q[row, place], keys, values, seen)
            np.testing.assert_allclose(out[row, place], want, rtol=1e-5, atol=1e-6)
    longer = {name: np.pad(x, ((0, 0), (0, 8), (0, 0))) for name, x in cache.items()}
    np.testing.assert_array_equal(run(longer), out)
