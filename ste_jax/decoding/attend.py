"""How do several rows attend to a prompt that they share, without reading it once per row?

Shapes: `G` groups (prompts), `N` rows of a group, `B = G * N`, `T` time, `K` kv heads, `r` query
heads per kv head, `d` head size; `M` queries and `S` keys of a stretch, `S'` keys of a block of
what a row has written.

Caches have the head before the place, so that the two products are plain batched matrix products,
and keys may be kept transposed: nothing large is then transposed each time it is read (on CPU that
is most of what attention costs). Attention over several stretches of keys is each stretch's own
softmax, left undivided, merged by their maxima and sums: one exact softmax over all.

A layer with a window keeps only what can still be seen: of a prompt its end, and of what a row has
written a ring of the last tokens. Without a window, what rows have written is kept in blocks, and a
step reads at most twice as many blocks as the longest row has filled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ste_jax.models.attention import Attend, Seen
from ste_jax.models.kernels import PLAIN, Kernel, Kernels, Mqa
from ste_jax.parallel.sharding import over_mesh

UNSEEN = -1e30
"""The score of a key that a query may not see: beside any other it weighs nothing, and it can be
subtracted from itself."""

PAST_BLOCK = 256
"""How many of its new tokens a row keeps in one block, at the least."""
MOST_BLOCKS = 8
"""How many blocks a row has at the most: for longer pasts the blocks are larger, since a program of
many blocks takes long to compile."""


class Partial(NamedTuple):
    """Softmax attention over one stretch of keys, before the division by its sum; all float32."""

    highest: jax.Array
    """The largest score of each query [..., M, 1]; `UNSEEN` where it may see no key, and then the
    rest is anything finite: beside a stretch of which it sees a key, this one weighs nothing."""
    total: jax.Array
    """The sum of exp(score - highest) [..., M, 1]."""
    mixed: jax.Array
    """The values weighted by exp(score - highest) [..., M, d]."""


def places(length: int, window: int | None) -> int:
    """How many places a layer's cache has for a stretch of `length` tokens."""
    return length if window is None else min(length, window)


def past_blocks(bucket: int) -> list[int]:
    """The sizes of the blocks for a row's `bucket` new tokens, in a layer without a window: all but
    the last are alike."""
    size = PAST_BLOCK * -(-bucket // (PAST_BLOCK * MOST_BLOCKS))
    return [min(size, bucket - start) for start in range(0, bucket, size)]


def partial_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: Seen,
    mask: jax.Array | None = None,
    *,
    repeated: bool = False,
) -> Partial:
    """Attention of queries `q` [..., M, d] to `k`, `v` [..., S, d].

    `mask` broadcasts to [..., M, S]; None lets every query see every key. Values that no query may
    see must still be finite, for they are multiplied by zero. `repeated`: a key that a query may
    not see is one that it may see once more (or it sees none), so that the largest score is known
    before the mask, which then costs nothing.
    """
    if math.frexp(seen.scale)[0] == 0.5:
        # A power of two is as exact on the queries, which are far fewer than the products.
        q, seen = q * seen.scale, seen._replace(scale=1.0)
    with jax.named_scope("scores"):
        scores = jnp.einsum("...md,...sd->...ms", q, k, preferred_element_type=jnp.float32)
    scores = seen.score(scores)
    if mask is not None and not repeated:
        scores = jnp.where(mask, scores, UNSEEN)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    # Nothing may stand between the largest score and its use: XLA on CPU would need a third
    # longer for all of this.
    weights = jnp.exp(scores - highest)
    if mask is not None and repeated:
        weights = jnp.where(mask, weights, 0.0)
        highest = jnp.where(jnp.any(mask, axis=-1, keepdims=True), highest, UNSEEN)
    # Held, so that XLA on TPU computes them once and reads the scores, which are larger than the
    # keys, once for both the sum and the product.
    held = jax.lax.optimization_barrier(weights.astype(v.dtype))
    with jax.named_scope("values"):
        mixed = jnp.einsum("...ms,...sd->...md", held, v, preferred_element_type=jnp.float32)
    return Partial(highest, jnp.sum(weights, axis=-1, keepdims=True), mixed)


def merge(parts: Sequence[Partial]) -> Partial:
    """Attention over the keys of all `parts` together; their shapes must agree."""
    highest = parts[0].highest
    for part in parts[1:]:
        highest = jnp.maximum(highest, part.highest)
    shares = [jnp.exp(part.highest - highest) for part in parts]
    total = sum(share * part.total for share, part in zip(shares, parts, strict=True))
    mixed = sum(share * part.mixed for share, part in zip(shares, parts, strict=True))
    return Partial(highest, jnp.asarray(total), jnp.asarray(mixed))


def decode_attend(
    groups: int,
    prefix_length: jax.Array,
    filled: jax.Array,
    kernels: Kernels = PLAIN,
    *,
    keys_transposed: bool = True,
) -> Attend:
    """Attention of one new token per row to its group's prompt, its own past and itself.

    `prefix_length` [G] and `filled` [G,N] say how much of the layer's cache counts: `prefix_k`
    [G,K,d,S], where the prompt's last key stands in all places after it, `prefix_v` [G,K,S,d], and
    `pasts`, blocks one after another, each of `k` [G,N,K,d,S'] and `v` [G,N,K,S',d]. Without
    `keys_transposed`, keys have the shapes that values have. Blocks that no row has reached may be
    absent: they would add exact zeros. Under a window a prompt that is longer than `S` is there
    with its last `S` tokens, there is one block, and token t of a row stands at place t modulo
    `S'`.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, seen: Seen) -> jax.Array:
        batch, _, heads, size = q.shape
        kv_heads = k.shape[2]
        rows, each = batch // groups, heads // kv_heads
        q = q.reshape(groups, rows, kv_heads, each, size)
        prefix_k, prefix_v = cache["prefix_k"], cache["prefix_v"]
        if keys_transposed:
            prefix_k = prefix_k.swapaxes(2, 3)
        prefix = _prompt_part(q, prefix_k, prefix_v, prefix_length, filled, kernels.decode, seen)
        pasts = []
        for index, block in enumerate(cache["pasts"]):
            past_k = block["k"].swapaxes(3, 4) if keys_transposed else block["k"]
            start = index * cache["pasts"][0]["v"].shape[3]
            pasts.append(_past_part(q, past_k, block["v"], filled, start, kernels.decode, seen))
        with jax.named_scope("own"):
            own = partial_attention(
                q,
                k.reshape(groups, rows, kv_heads, 1, size),
                v.reshape(groups, rows, kv_heads, 1, size),
                seen,
            )
        _, total, mixed = merge([prefix, *pasts, own])
        return (mixed / total).astype(v.dtype).reshape(batch, 1, heads, size)

    return attend


def _prompt_part(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prefix_length: jax.Array,
    filled: jax.Array,
    kernel: Mqa | None,
    seen: Seen,
) -> Partial:
    """Attention of `q` [G,N,K,r,d] to the prompts `k`, `v` [G,K,S,d], of all rows of a group at
    once."""
    groups, rows, kv_heads, each, size = q.shape
    prompt = v.shape[2]
    together = q.transpose(0, 2, 1, 3, 4).reshape(groups, kv_heads, rows * each, size)
    if kernel is not None and kernel.fits(seen, q.dtype, size, keys=prompt):
        length = jnp.broadcast_to(prefix_length[:, None], (groups, kv_heads))
        part = _shared(kernel, together, k, v, length, seen)
    else:
        mask = _prompt_seen(prompt, prefix_length, filled, each, seen)[:, None]
        with jax.named_scope("prompt"):
            part = partial_attention(together, k, v, seen, mask, repeated=seen.window is None)
    return Partial(
        *(x.reshape(groups, kv_heads, rows, each, -1).transpose(0, 2, 1, 3, 4) for x in part)
    )


def _past_part(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    filled: jax.Array,
    start: int,
    kernel: Mqa | None,
    seen: Seen,
) -> Partial:
    """Attention of `q` [G,N,K,r,d] to the block `k`, `v` [G,N,K,S',d] of what their rows have
    written; its first token is number `start`."""
    size = v.shape[3]
    if kernel is not None and kernel.fits(seen, q.dtype, v.shape[4], keys=size):
        length = jnp.clip(filled - start, 0, size)
        length = jnp.broadcast_to(length[:, :, None], q.shape[:3])
        return _shared(kernel, q, k, v, length, seen)
    mask = _past_seen(size, filled - start, seen)[:, :, None, None]
    with jax.named_scope("past"):
        return partial_attention(q, k, v, seen, mask)


def _shared(
    kernel: Mqa, q: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array, seen: Seen
) -> Partial:
    """Attention of `q` [...,M,d] to the first `length` [...] of `k`, `v` [...,S,d]."""
    *outer, _, _ = q.shape
    q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    highest, total, mixed = kernel(q, k, v, length.reshape(-1), seen)
    return Partial(
        *(x.reshape(*outer, *x.shape[1:]) for x in (highest[..., None], total[..., None], mixed))
    )


def _prompt_seen(
    size: int, prefix_length: jax.Array, filled: jax.Array, each: int, seen: Seen
) -> jax.Array:
    """Which places of a group's prompt its rows see, `each` queries a row: [G, N*each or 1, S]."""
    place = jnp.arange(size)
    if seen.window is None:
        return (place < prefix_length[:, None])[:, None]
    first = jnp.maximum(prefix_length - size, 0)
    key = first[:, None, None] + place
    query = jnp.repeat(prefix_length[:, None] + filled, each, axis=1)[:, :, None]
    return (key < prefix_length[:, None, None]) & seen.near(query, key)


def _past_seen(size: int, filled: jax.Array, seen: Seen) -> jax.Array:
    """Which places of its own past a row sees: [G,N,S']."""
    place = jnp.arange(size)
    if seen.window is None:
        return place < filled[:, :, None]
    # The token at a place is the last one that was written there.
    token = filled[:, :, None] - 1 - (filled[:, :, None] - 1 - place) % size
    return (token >= 0) & seen.near(filled[:, :, None], token)


def shared_prefix_attend(length: jax.Array, chunk: int, kernels: Kernels = PLAIN) -> Attend:
    """Causal attention of each row to itself, and of all rows to the first `length` cached tokens.

    The layer's cache is `k`, `v` [K,S,d]; S is a multiple of `chunk`. It is read chunk by chunk,
    only as far as `length` goes, so the result does not depend on S. Where they take the shapes,
    `kernels` compute what rows see of themselves, and the chunks that all queries see whole.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, seen: Seen) -> jax.Array:
        run = partial(_attend_prefix_and_self, chunk=chunk, kernels=kernels, seen=seen)
        if kernels == PLAIN:
            return run(q, k, v, cache["k"], cache["v"], length)
        # The compiler cannot divide a kernel: each device runs it on its own rows and heads.
        rows, kept = ("batch", None, "kv_heads", None), ("kv_heads", None, None)
        axes = [(k.shape, rows)] * 3 + [(cache["k"].shape, kept)] * 2 + [((), ())]
        return over_mesh(run, axes, axes[0])(q, k, v, cache["k"], cache["v"], length)

    return attend


def _attend_prefix_and_self(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prefix_k: jax.Array,
    prefix_v: jax.Array,
    length: jax.Array,
    *,
    chunk: int,
    kernels: Kernels,
    seen: Seen,
) -> jax.Array:
    batch, time, heads, size = q.shape
    kv_heads = k.shape[2]
    each = heads // kv_heads
    # Queries of a row and kv head: [B, K, T * r, d]; of a kv head alone: [K, B * T * r, d].
    by_row = q.reshape(batch, time, kv_heads, each, size).transpose(0, 2, 1, 3, 4)
    by_row = by_row.reshape(batch, kv_heads, time * each, size)
    together = by_row.transpose(1, 0, 2, 3).reshape(kv_heads, batch * time * each, size)
    when = jnp.arange(time * each) // each

    with jax.named_scope("prefix"):
        prefix = _prefix_part(
            together, prefix_k, prefix_v, length, jnp.tile(when, batch), chunk, kernels.prefix, seen
        )
    prefix = Partial(
        *(x.reshape(kv_heads, batch, time * each, -1).transpose(1, 0, 2, 3) for x in prefix)
    )
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    kernel = kernels.own
    if kernel is not None and kernel.fits(seen, q.dtype, size, queries=time, keys=time):
        own = _by_kernel(kernel, q.transpose(0, 2, 1, 3), k, v, seen, causal=True)
        own = Partial(
            *(
                x.reshape(batch, kv_heads, each, time, -1)
                .swapaxes(2, 3)
                .reshape(batch, kv_heads, time * each, -1)
                for x in own
            )
        )
    else:
        query, key = when[:, None], jnp.arange(time)
        mask = (query >= key) & seen.near(query, key)
        with jax.named_scope("own"):
            own = partial_attention(by_row, k, v, seen, mask)
    _, total, mixed = merge([prefix, own])
    out = (mixed / total).reshape(batch, kv_heads, time, each, size)
    return out.transpose(0, 2, 1, 3, 4).astype(v.dtype).reshape(batch, time, heads, size)


def _prefix_part(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    length: jax.Array,
    when: jax.Array,
    chunk: int,
    kernel: Kernel | None,
    seen: Seen,
) -> Partial:
    """Attention of queries `q` [K,M,d] to the first `length` tokens of `k`, `v` [K,S,d].

    `when` [M]: how far behind them a query stands, counted from 0.
    """

    def piece(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys, values = (
            jax.lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1) for x in (k, v)
        )
        return keys, values

    def step(index: jax.Array, sofar: Partial) -> Partial:
        key = index * chunk + jnp.arange(chunk)
        mask = (key < length)[None]
        if seen.window is not None:
            mask = mask & seen.near(length + when[:, None], key)
        return merge([sofar, partial_attention(q, *piece(index), seen, mask[None])])

    def kernel_step(index: jax.Array, sofar: Partial) -> Partial:
        assert kernel is not None
        keys, values = piece(index)
        part = _by_kernel(kernel, q[None], keys[None], values[None], seen, causal=False)
        return merge([sofar, Partial(*(x[0] for x in part))])

    kv_heads, queries, size = q.shape
    nothing = Partial(
        jnp.full((kv_heads, queries, 1), UNSEEN),
        jnp.zeros((kv_heads, queries, 1)),
        jnp.zeros((kv_heads, queries, size)),
    )
    first = 0 if seen.window is None else jnp.maximum(length + 1 - seen.window, 0) // chunk
    end = (length + chunk - 1) // chunk
    if kernel is None or not kernel.fits(seen, q.dtype, size, queries=queries, keys=chunk):
        plain: Partial = jax.lax.fori_loop(first, end, step, nothing)
        return plain
    # All queries see all of a chunk but for the prefix's last and those at the window's edge.
    whole, whole_end = first, length // chunk
    if seen.window is not None:
        whole = (length + jnp.max(when) - seen.window + chunk) // chunk
        whole = jnp.clip(whole, first, whole_end)
    part: Partial = jax.lax.fori_loop(first, whole, step, nothing)
    part = jax.lax.fori_loop(whole, whole_end, kernel_step, part)
    part = jax.lax.fori_loop(whole_end, end, step, part)
    return part


def _by_kernel(
    kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen, *, causal: bool
) -> Partial:
    out, logsumexp = kernel(q, k, v, seen, causal=causal)
    highest = logsumexp[..., None]
    return Partial(highest, jnp.ones_like(highest), out.astype(jnp.float32))
