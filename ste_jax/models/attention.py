"""How do queries attend over one or several stretches of keys and values?

Shapes: `B` batch, `T` query time, `S` key time, `H` query heads, `K` kv heads, `G = H / K`,
`d` head size.

A decoding step attends over a shared prompt and over what each sample has written since; training
attends over one packed row. Both are `attention` over a list of `Part`s under one softmax. The
model itself knows neither: it is given an `Attend` function, and says of each layer what is `Seen`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Seen(NamedTuple):
    """What a layer's queries see and how they score it. It holds no arrays, so each value of it
    compiles to a program of its own."""

    scale: float
    """Products of query and key are multiplied by it."""
    window: int | None = None
    """How many keys a query sees, itself the last of them; None: all before it."""
    softcap: float | None = None
    """Scores are capped by it, see `capped`."""

    def score(self, products: jax.Array) -> jax.Array:
        """Scores of products of queries and keys, both float32."""
        return capped(self.scale * products, self.softcap)

    def near(self, query: jax.Array, key: jax.Array) -> jax.Array | bool:
        """Whether a key at position `key`, not after `query`, is within the window."""
        return True if self.window is None else key > query - self.window


Attend = Callable[[jax.Array, jax.Array, jax.Array, Any, Seen], jax.Array]
"""`attend(q [B,T,H,d], k [B,T,K,d], v [B,T,K,d], layer_cache, seen) -> [B,T,H,d]`."""


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(x / cap)`, which stays within the cap (Gemma 2); `x` where `cap` is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class Part(NamedTuple):
    """A stretch of keys and values, and which query may see which key.

    `k` and `v` are [B', S, K, d] where B' divides B: each row serves B / B' consecutive rows of
    queries, so the samples of one prompt share its keys without a copy. `mask` is [B or 1, T, S].
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array


def attention(q: jax.Array, parts: Sequence[Part], seen: Seen) -> jax.Array:
    """Softmax attention of `q` [B,T,H,d] over all keys of all `parts` together -> [B,T,H,d].

    Scores and softmax are float32, the two products take inputs of the arrays' own type. A query
    that may see no key gets zeros. A window must already be in the masks.
    """
    scores = []
    for k, _, mask in parts:
        products = jnp.einsum(
            "bkntgd,bskd->bkntgs", _by_row(q, k), k, preferred_element_type=jnp.float32
        )
        score = seen.score(products)
        scores.append(jnp.where(_by_row(mask[:, :, None, :], k), score, -jnp.inf))

    # The maximum only keeps exp in range: it cancels, so no gradient flows through it.
    maxima = [_by_query(jnp.max(score, axis=-1, keepdims=True)) for score in scores]
    highest = jax.lax.stop_gradient(reduce(jnp.maximum, maxima))
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)

    total = mixed = jnp.zeros((), jnp.float32)
    for (k, v, _), score in zip(parts, scores, strict=True):
        weights = jnp.exp(score - _by_row(highest, k))
        total += _by_query(jnp.sum(weights, axis=-1, keepdims=True))
        mixed += _by_query(
            jnp.einsum(
                "bkntgs,bskd->bkntgd",
                weights.astype(v.dtype),
                v,
                preferred_element_type=jnp.float32,
            )
        )
    return (mixed / jnp.where(total == 0.0, 1.0, total)).astype(q.dtype)


def causal(segment_ids: jax.Array, positions: jax.Array) -> Attend:
    """Attention of packed rows to themselves: earlier positions of the same segment.

    `segment_ids` [B,T] numbers the sequences of a row from 1, 0 is padding, which neither sees nor
    is seen; `positions` [B,T] counts from 0 in each segment. The layer's cache is not looked at.
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    query, key = positions[:, :, None], positions[:, None, :]
    mask = same & (query >= key) & (segment_ids != 0)[:, :, None]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, layer_cache: Any, seen: Seen) -> jax.Array:
        del layer_cache
        return attention(q, [Part(k, v, mask & seen.near(query, key))], seen)

    return attend


def _by_row(x: jax.Array, k: jax.Array) -> jax.Array:
    """[B or 1, T, H or 1, e] -> [B', K, n, T, G, e], as the rows and heads of `k` serve it.

    The order in which the matmul leaves the scores: they are large and should not be transposed.
    """
    batch, time, heads, last = x.shape
    rows, kv_heads = (min(k.shape[0], batch), min(k.shape[2], heads))
    x = x.reshape(rows, batch // rows, time, kv_heads, heads // kv_heads, last)
    return x.transpose(0, 3, 1, 2, 4, 5)


def _by_query(x: jax.Array) -> jax.Array:
    """[B', K, n, T, G, e] -> [B, T, H, e]."""
    rows, kv_heads, served, time, group, last = x.shape
    return x.transpose(0, 2, 3, 1, 4, 5).reshape(rows * served, time, kv_heads * group, last)
