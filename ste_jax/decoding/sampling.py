"""How is the next token drawn, exactly and without sorting the vocabulary?

Shapes: `B` rows, `V` vocabulary.

A row's distribution is the softmax of its logits over `temperature`, cut down by three filters:
`top_k` keeps a token if fewer than k tokens are likelier; of what is left, `top_p` keeps a token if
the likelier ones together hold less than the share p (Holtzman et al. 2020, arXiv 1904.09751); and
`min_p` keeps one that is at least that share as likely as the likeliest (Nguyen et al. 2024, arXiv
2407.01082). Equally likely tokens are kept or cut together, so the order of the vocabulary never
matters, and the likeliest is always kept.

What the filters keep is an upper set of the probabilities. `top_k` and `min_p` are thresholds,
below which all is cut away. For `top_p`, a token is drawn from what is left and tested: it was to
be kept if what is likelier is little enough. If not, neither it nor anything less likely was, all
that is cut away, and another is drawn from the rest. What is accepted is exactly distributed, each
try costs two sums over the vocabulary, and few tries are needed.

A draw is Gumbel's: the largest of log-weight + noise, first among blocks of the vocabulary by their
total weights, then within the block, so that the noise is of a few hundred numbers and not of V.
The noise comes from the row's own key, which names the sample and the token's place in it and
nothing of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 128
"""Tokens per block of the two-step draw."""


def row_keys(seed: jax.Array, row_id: jax.Array, sample: jax.Array) -> jax.Array:
    """The random key [B] of each sample.

    `seed` and `row_id` [B,2] uint32 are the halves (high, low) of two 64-bit numbers, `sample` [B]
    is the sample's index.
    """
    keys: jax.Array = jax.random.wrap_key_data(seed, impl="threefry2x32")
    for part in (row_id[:, 0], row_id[:, 1], sample):
        keys = jax.vmap(jax.random.fold_in)(keys, part)
    return keys


class _Blocks(NamedTuple):
    """Numbers for the tokens of every row, in blocks of the vocabulary."""

    values: jax.Array
    """[B,V/BLOCK,BLOCK], or by columns [V/BLOCK,BLOCK,B]."""
    columns: bool

    def map(self, function: Callable[..., jax.Array], *per_row: jax.Array) -> _Blocks:
        """`function` of the numbers and of one [B] for each row."""
        given = per_row if self.columns else [one[:, None, None] for one in per_row]
        return self._replace(values=function(self.values, *given))

    def of_blocks(self, reduce: Callable[..., jax.Array]) -> jax.Array:
        """`reduce` (`jnp.sum` or `jnp.max`) of each block: [B,V/BLOCK]."""
        found = reduce(self.values, axis=1 if self.columns else 2)
        return found.T if self.columns else found

    def of_rows(self, reduce: Callable[..., jax.Array]) -> jax.Array:
        """The same of each row: [B]."""
        return reduce(self.values, axis=(0, 1) if self.columns else (1, 2))

    def block(self, index: jax.Array) -> jax.Array:
        """One block [B,BLOCK] of each row."""
        if self.columns:
            return self.values[index, :, jnp.arange(index.size)]
        return jnp.take_along_axis(self.values, index[:, None, None], axis=1)[:, 0]


@jax.named_scope("sample")
def sample(
    logits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
    *,
    columns: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """One token per row, and its log-probability.

    Args:
      logits: [B,V] float32.
      keys: [B] random keys, one per token to be drawn.
      temperature: [B]; 0 takes the likeliest token (the first of equals).
      top_k: [B] int32; 0 keeps all.
      top_p: [B]; 1 keeps all.
      min_p: [B]; 0 keeps all.
      columns: `logits` are [V,B] in memory and are not to be transposed, which on CPU costs as
        much as half of the drawing.

    Returns:
      Tokens [B] int32 and their log-probabilities [B] under the softmax of `logits` as they are: no
      temperature, no filter. Where a row's logits are not finite, its log-probability is not
      either.
    """
    rows, vocab = logits.shape
    room = (0, -vocab % BLOCK)
    if columns:
        padded = jnp.pad(logits.T, (room, (0, 0)), constant_values=-jnp.inf)
        blocks = _Blocks(padded.reshape(-1, BLOCK, rows), columns)
    else:
        padded = jnp.pad(logits, ((0, 0), room), constant_values=-jnp.inf)
        blocks = _Blocks(padded.reshape(rows, -1, BLOCK), columns)
    highest = blocks.of_rows(jnp.max)
    # No `cond` for batches that are all greedy: its branches are not run in parallel on CPU.
    drawn = _draw(blocks, highest, keys, temperature, top_k, top_p, min_p)
    tokens = jnp.where(temperature > 0.0, drawn, _likeliest(blocks))
    total = blocks.map(lambda x, high: jnp.exp(x - high), highest).of_rows(jnp.sum)
    chosen = logits[jnp.arange(rows), tokens]
    return tokens, chosen - highest - jnp.log(total)


def token_logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probabilities [...] of `tokens` [...] under the softmax of `logits` [...,V]."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _likeliest(logits: _Blocks) -> jax.Array:
    """The first token [B] of the largest logit.

    By way of the blocks: XLA takes `argmax` one number at a time on CPU.
    """
    block = jnp.argmax(logits.of_blocks(jnp.max), axis=-1).astype(jnp.int32)
    return block * BLOCK + jnp.argmax(logits.block(block), axis=-1).astype(jnp.int32)


def _draw(
    logits: _Blocks,
    highest: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
) -> jax.Array:
    rows = keys.size
    sharpness = 1.0 / jnp.where(temperature > 0.0, temperature, 1.0)
    weights = logits.map(lambda x, high, sharp: jnp.exp((x - high) * sharp), highest, sharpness)
    floor = _kth_weight(weights, top_k)
    total = weights.map(_from, floor).of_rows(jnp.sum)
    weights = weights.map(_from, jnp.maximum(floor, min_p))  # the likeliest has the weight 1

    def attempt(carry: Any) -> Any:
        tries, cut, token, accepted = carry
        left = weights.map(_above, cut).of_blocks(jnp.sum)
        blocks = left.shape[1]
        noise = jax.vmap(
            lambda key: jax.random.gumbel(
                jax.random.fold_in(key, tries), (blocks + BLOCK,), mode="high"
            )
        )(keys)
        block = jnp.argmax(jnp.log(left) + noise[:, :blocks], axis=-1)
        inside = _above(weights.block(block), cut[:, None])
        place = jnp.argmax(jnp.log(inside) + noise[:, blocks:], axis=-1)
        weight = jnp.take_along_axis(inside, place[:, None], axis=1)[:, 0]

        mass = weights.map(_above, weight).of_rows(jnp.sum)
        kept = (top_p >= 1.0) | (mass < top_p * total) | (weight >= 1.0)
        token = jnp.where(accepted, token, (block * BLOCK + place).astype(jnp.int32))
        cut = jnp.where(accepted, cut, weight)
        # What is not finite has no weight that could ever be accepted.
        return tries + 1, cut, token, accepted | kept | ~(total > 0.0)

    start = (0, jnp.zeros(rows), jnp.zeros(rows, jnp.int32), temperature <= 0.0)
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[3]), attempt, start)[2]


def _from(weights: jax.Array, floor: jax.Array) -> jax.Array:
    """`weights` that reach `floor`, zeros for the others."""
    return jnp.where(weights >= floor, weights, 0.0)


def _above(weights: jax.Array, cut: jax.Array) -> jax.Array:
    """`weights` that are larger than `cut`, zeros for the others."""
    return jnp.where(weights > cut, weights, 0.0)


def _kth_weight(weights: _Blocks, top_k: jax.Array) -> jax.Array:
    """The k-th largest [B] of a row's `weights`, which are at most 1; 0 where `top_k` is 0.

    Found by halving, on the bits of the threshold: floats that are not negative are ordered as
    their bits are. Where no row has a `top_k` nothing is done.
    """
    rows = top_k.size
    wanted = jnp.minimum(top_k, weights.values.size // rows)
    above_one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32) + 1

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        threshold = jax.lax.bitcast_convert_type(middle, jnp.float32)
        reach = weights.map(lambda x, least: jnp.where(x >= least, 1.0, 0.0), threshold)
        enough = reach.of_rows(jnp.sum) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    start = (jnp.zeros(rows, jnp.int32), jnp.full(rows, above_one))
    steps = jnp.where(jnp.any(top_k > 0), 31, 0)
    low, _ = jax.lax.fori_loop(0, steps, halve, start)
    return jnp.where(top_k > 0, jax.lax.bitcast_convert_type(low, jnp.float32), 0.0)
