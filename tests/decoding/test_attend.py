"""Is attention over several stretches one softmax over all of them?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ste_jax.decoding.attend import decode_attend, merge, partial_attention, shared_prefix_attend

Array = np.ndarray[Any, Any]
HEADS, KV_HEADS, SIZE = 6, 2, 4


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(0, 1.5, shape).astype(np.float32)


def plain(q: Array, k: Array, v: Array) -> Array:
    """One query [H,d] over keys and values [S,K,d], in float64."""
    out = []
    for head in range(HEADS):
        keys, values = (x[:, head // (HEADS // KV_HEADS)].astype(np.float64) for x in (k, v))
        scores = keys @ q[head] / np.sqrt(SIZE)
        weights = np.exp(scores - scores.max())
        out.append(weights @ values / weights.sum())
    return np.array(out)


def test_merged_stretches_are_one_softmax() -> None:
    q, k, v = normal(0, 5, 4), normal(1, 9, 4), normal(2, 9, 4)
    whole = partial_attention(q, k, v)
    parts = [partial_attention(q, k[a:b], v[a:b]) for a, b in ((0, 2), (2, 3), (3, 9))]
    merged = merge(parts)
    np.testing.assert_allclose(merged.mixed / merged.total, whole.mixed / whole.total, rtol=1e-5)


def test_a_stretch_of_which_nothing_is_seen_changes_no_bit() -> None:
    q, k, v = normal(0, 5, 4), normal(1, 9, 4), normal(2, 9, 4)
    whole = partial_attention(q, k, v)
    unseen = partial_attention(q, k, v, jnp.zeros((1, 9), bool))
    for parts in ([whole, unseen], [unseen, whole]):
        merged = merge(parts)
        np.testing.assert_array_equal(merged.mixed, whole.mixed)
        np.testing.assert_array_equal(merged.total, whole.total)


def test_a_decoding_step_sees_its_prompt_its_past_and_itself() -> None:
    groups, rows, prompt, past = 2, 3, 7, 5
    batch = groups * rows
    q = normal(0, batch, 1, HEADS, SIZE)
    k, v = normal(1, batch, 1, KV_HEADS, SIZE), normal(2, batch, 1, KV_HEADS, SIZE)
    cache = {
        "prefix_k": normal(3, groups, KV_HEADS, SIZE, prompt),
        "prefix_v": normal(4, groups, KV_HEADS, prompt, SIZE),
        "suffix_k": normal(5, groups, rows, KV_HEADS, past, SIZE),
        "suffix_v": normal(6, groups, rows, KV_HEADS, past, SIZE),
    }
    length, filled = np.array([7, 0]), np.array([[0, 2, 5], [1, 0, 3]])
    attend = decode_attend(groups, jnp.asarray(length), jnp.asarray(filled))
    out = jax.jit(attend)(q, k, v, cache)
    for group in range(groups):
        for row in range(rows):
            index = group * rows + row
            prompts = {"k": cache["prefix_k"].swapaxes(2, 3), "v": cache["prefix_v"]}
            keys, values = (
                np.concatenate(
                    [
                        prompts[name][group, :, : length[group]].swapaxes(0, 1),
                        cache[f"suffix_{name}"][group, row, :, : filled[group, row]].swapaxes(0, 1),
                        own[index],
                    ]
                )
                for name, own in (("k", k), ("v", v))
            )
            want = plain(q[index, 0], keys, values)
            np.testing.assert_allclose(out[index, 0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 4, 6, 8])
def test_rows_over_a_shared_prefix(length: int) -> None:
    rows, time, chunk = 3, 5, 4
    q = normal(0, rows, time, HEADS, SIZE)
    k, v = normal(1, rows, time, KV_HEADS, SIZE), normal(2, rows, time, KV_HEADS, SIZE)
    cache = {"k": normal(3, KV_HEADS, 8, SIZE), "v": normal(4, KV_HEADS, 8, SIZE)}

    def run(cache: Any) -> Any:
        return jax.jit(shared_prefix_attend(jnp.int32(length), chunk))(q, k, v, cache)

    out = run(cache)
    for row in range(rows):
        for place in range(time):
            keys, values = (
                np.concatenate([cache[name][:, :length].swapaxes(0, 1), own[row, : place + 1]])
                for name, own in (("k", k), ("v", v))
            )
            want = plain(q[row, place], keys, values)
            np.testing.assert_allclose(out[row, place], want, rtol=1e-5, atol=1e-6)
    longer = {name: np.pad(x, ((0, 0), (0, 8), (0, 0))) for name, x in cache.items()}
    np.testing.assert_array_equal(run(longer), out)
