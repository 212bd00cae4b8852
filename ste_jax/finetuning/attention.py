"""How does a packed row attend to itself in training?

Shapes: `B` rows, `T` time, `H` query heads, `K` kv heads, `G = H / K`, `d` head size, `Q` block.

A packed row holds each segment's tokens in order, so no token sees one that stands to its right.
The queries are taken in blocks of `Q`, each against the keys up to its own end and, under a window,
from where its first query sees: half the scores or more are never computed, and none are held for
the whole row at once. Where a kernel takes the shape, it runs instead.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ste_jax.models.attention import Attend, Seen
from ste_jax.models.kernels import PLAIN, Kernels, Splash
from ste_jax.parallel.sharding import over_mesh

BLOCK = 128
"""The smallest `Q`: on CPU the fastest of 128, 256 and 512 for rows of 1,024 tokens."""
MOST_BLOCKS = 8
"""How many blocks a row has at the most: longer rows have longer blocks, since a program of many
blocks takes long to compile."""


def packed_causal(segment_ids: jax.Array, positions: jax.Array, kernels: Kernels = PLAIN) -> Attend:
    """Attention of packed rows to themselves: earlier positions of the same segment.

    `segment_ids` [B,T] numbers the segments of a row; `positions` [B,T] counts from 0 in each, and
    grows from left to right. What stands in padding attends to padding, so that every query sees a
    key; nothing reads it.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, layer_cache: Any, seen: Seen) -> jax.Array:
        del layer_cache
        batch, time, heads, head_dim = q.shape
        kv_heads = k.shape[2]
        groups = heads // kv_heads
        kernel = kernels.packed
        if kernel is not None and kernel.fits(seen, q.dtype, head_dim, queries=time, keys=time):
            return _by_kernel(kernel, q, k, v, segment_ids, seen)
        # Heads first, and the query heads of a kv head as rows of one product.
        q = jnp.moveaxis(q.reshape(batch, time, kv_heads, groups, head_dim), 1, 3)
        k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)

        size = max(BLOCK, -(-time // MOST_BLOCKS))
        mixed = []
        for start in range(0, time, size):
            stop = min(start + size, time)
            # Distances in places are distances in positions: keys further left are out of sight.
            first = 0 if seen.window is None else max(0, start + 1 - seen.window)
            same = segment_ids[:, start:stop, None] == segment_ids[:, None, first:stop]
            query, key = positions[:, start:stop, None], positions[:, None, first:stop]
            mask = same & (query >= key) & seen.near(query, key)
            mask = jnp.tile(mask, (1, groups, 1))[:, None]
            block = q[:, :, :, start:stop].reshape(batch, kv_heads, -1, head_dim)
            out = _attention(block, k[:, :, first:stop], v[:, :, first:stop], mask, seen)
            mixed.append(out.reshape(batch, kv_heads, groups, stop - start, head_dim))
        out = jnp.concatenate(mixed, axis=3)
        return jnp.moveaxis(out, 3, 1).reshape(batch, time, heads, head_dim)

    return attend


def _by_kernel(
    kernel: Splash,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    seen: Seen,
) -> jax.Array:
    """Runs `kernel` on each device's own rows and heads, since the compiler cannot divide a kernel.
    Arrays are as `Attend` takes them."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q, k, v))
        return jnp.moveaxis(kernel.packed(q, k, v, segment_ids, seen), 1, 2)

    rows = (k.shape, ("batch", None, "kv_heads", None))
    ids = (segment_ids.shape, ("batch", None))
    # Query heads are divided as their kv heads are.
    return over_mesh(run, [rows, rows, rows, ids], rows)(q, k, v, segment_ids)


def _attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, seen: Seen) -> jax.Array:
    """`q` [B,K,G*Q,d], `k` and `v` [B,K,S,d], `mask` [B,1,G*Q,S] -> [B,K,G*Q,d], in float32."""
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, seen.score(scores), -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bkqs,bksd->bkqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (mixed / total).astype(v.dtype)
