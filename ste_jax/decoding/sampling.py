"""How is the next token drawn, exactly and without sorting the vocabulary?

Shapes: `B` rows, `V` vocabulary.

A row's distribution is the softmax of its logits over `temperature`, cut down by three filters:
`top_k` keeps a token if fewer than k tokens are likelier; of what is left, `top_p` keeps a token if
the likelier ones together hold less than the share p (Holtzman et al. 2020, arXiv 1904.09751); and
`min_p` keeps one that is at least that share as likely as the likeliest (Nguyen et al. 2024, arXiv
2407.01082). Equally likely tokens are kept or cut together, so the order of the vocabulary never
matters, and the likeliest is always kept.

What the filters keep is an upper set of the probabilities. So a token is drawn from the whole
distribution and tested: it was to be kept if what is likelier is little enough. If not, neither it
nor anything less likely was, all that is cut away, and another is drawn from the rest. What is
accepted is exactly distributed, each try costs two sums over the vocabulary, and few tries are
needed.

A draw is Gumbel's: the largest of log-weight + noise, first among blocks of the vocabulary by their
total weights, then within the block, so that the noise is of a few hundred numbers and not of V.
The noise comes from the row's own key, which names the sample and the token's place in it and
nothing of the batch.
"""

from __future__ import annotations

from typing import Any

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


def sample(
    logits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One token per row, and its log-probability.

    Args:
      logits: [B,V] float32.
      keys: [B] random keys, one per token to be drawn.
      temperature: [B]; 0 takes the likeliest token (the first of equals).
      top_k: [B] int32; 0 keeps all.
      top_p: [B]; 1 keeps all.
      min_p: [B]; 0 keeps all.

    Returns:
      Tokens [B] int32 and their log-probabilities [B] under the softmax of `logits` as they are: no
      temperature, no filter. Where a row's logits are not finite, its log-probability is not
      either.
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    drawn = temperature > 0.0
    tokens = jax.lax.cond(
        jnp.any(drawn),
        lambda: jnp.where(drawn, _draw(logits, keys, temperature, top_k, top_p, min_p), greedy),
        lambda: greedy,
    )
    return tokens, token_logprobs(logits, tokens)


def token_logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probabilities [...] of `tokens` [...] under the softmax of `logits` [...,V]."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _draw(
    logits: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
) -> jax.Array:
    rows, vocab = logits.shape
    scaled = logits / jnp.where(temperature > 0.0, temperature, 1.0)[:, None]
    weights = jnp.exp(scaled - jnp.max(scaled, axis=-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, -vocab % BLOCK)))
    blocks = weights.shape[1] // BLOCK

    both = (top_k > 0) & (top_p < 1.0)
    total = jnp.sum(weights, axis=-1)
    total = jax.lax.cond(
        jnp.any(both),
        lambda: jnp.where(both, _top_k_mass(weights, top_k), total),
        lambda: total,
    )

    def attempt(carry: Any) -> Any:
        tries, cut, token, accepted = carry
        left = jnp.where(weights > cut[:, None], weights, 0.0).reshape(rows, blocks, BLOCK)
        noise = jax.vmap(
            lambda key: jax.random.gumbel(
                jax.random.fold_in(key, tries), (blocks + BLOCK,), mode="high"
            )
        )(keys)
        block = jnp.argmax(jnp.log(jnp.sum(left, axis=-1)) + noise[:, :blocks], axis=-1)
        inside = jnp.take_along_axis(left, block[:, None, None], axis=1)[:, 0]
        place = jnp.argmax(jnp.log(inside) + noise[:, blocks:], axis=-1)
        weight = jnp.take_along_axis(inside, place[:, None], axis=1)[:, 0]

        likelier = weights > weight[:, None]
        number = jnp.sum(likelier, axis=-1)
        mass = jnp.sum(jnp.where(likelier, weights, 0.0), axis=-1)
        kept = ((top_k == 0) | (number < top_k)) & ((top_p >= 1.0) | (mass < top_p * total))
        kept &= weight >= min_p  # the likeliest has the weight 1
        token = jnp.where(accepted, token, (block * BLOCK + place).astype(jnp.int32))
        cut = jnp.where(accepted, cut, weight)
        return tries + 1, cut, token, accepted | kept | (number == 0)

    start = (0, jnp.full(rows, -1.0), jnp.zeros(rows, jnp.int32), temperature <= 0.0)
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[3]), attempt, start)[2]


def _top_k_mass(weights: jax.Array, top_k: jax.Array) -> jax.Array:
    """Total weight [B] of the tokens that `top_k` keeps: found by halving, on the weights' bits.

    Floats that are not negative are ordered as their bits are. The largest threshold that at least
    k weights reach is the k-th largest weight.
    """
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32)
    wanted = jnp.minimum(top_k, weights.shape[1])

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(bits >= middle[:, None], axis=-1) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # Every weight is at least 0, and none is above 1.
    above_one = jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32) + 1
    rows = weights.shape[0]
    low, _ = jax.lax.fori_loop(
        0, 31, halve, (jnp.zeros(rows, jnp.int32), jnp.full(rows, above_one))
    )
    return jnp.sum(jnp.where(bits >= low[:, None], weights, 0.0), axis=-1)
