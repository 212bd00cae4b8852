"""What is minimized, and how is it computed without logits where no loss is taken?

Shapes: `B` rows, `T` time, `C` targets per row, `D` model, `V` vocabulary.

The logits of a row of 4,096 tokens over 128,000 words take 2 GB in float32, most of them of prompt
tokens that nothing is learnt from. So the hidden states in front of the targets are gathered first,
each row its own (no row moves between devices), and only they are multiplied by the vocabulary, in
pieces of at most `PIECE` targets a row that are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

PIECE = 512
"""How many targets of each row have their logits in memory at once."""


class TargetScores(NamedTuple):
    """Of each target."""

    logprob: jax.Array
    """[B,C] float32, nats."""
    right: jax.Array
    """[B,C] bool: whether the target has the highest logit; a tie counts."""


def target_scores(
    logits_of: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    target_at: jax.Array,
    targets: jax.Array,
) -> TargetScores:
    """How likely the model finds each target of packed rows.

    Args:
      logits_of: hidden states [..., D] to logits [..., V] in float32.
      hidden: [B,T,D].
      target_at: [B,C], where in `T` the hidden state in front of each target stands.
      targets: [B,C], token ids.
    """
    gathered = jnp.take_along_axis(hidden, target_at[..., None], axis=1)
    count = targets.shape[1]
    if count <= PIECE:
        return _scores(logits_of, gathered, targets)

    pieces = -(-count // PIECE)

    def cut(x: jax.Array) -> jax.Array:
        """[B,C,...] -> [pieces,B,PIECE,...], padded with zeros."""
        padded = jnp.pad(x, [(0, 0), (0, pieces * PIECE - count)] + [(0, 0)] * (x.ndim - 2))
        split = padded.reshape(x.shape[0], pieces, PIECE, *x.shape[2:])
        return jnp.moveaxis(split, 1, 0)

    @jax.checkpoint
    def piece(inputs: tuple[jax.Array, jax.Array]) -> TargetScores:
        return _scores(logits_of, *inputs)

    _, scores = jax.lax.scan(
        lambda carry, inputs: (carry, piece(inputs)), None, (cut(gathered), cut(targets))
    )

    def joined(x: jax.Array) -> jax.Array:
        """The other way."""
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :count]

    return TargetScores(*map(joined, scores))


def _scores(
    logits_of: Callable[[jax.Array], jax.Array], hidden: jax.Array, targets: jax.Array
) -> TargetScores:
    # As one list of targets: XLA on CPU keeps a transposed copy of logits of more dimensions.
    logits = logits_of(hidden.reshape(-1, hidden.shape[-1]))
    flat = targets.reshape(-1)
    # A masked sum and not a gather: its gradient is no scatter, and it partitions over `V`.
    is_target = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == flat[:, None]
    target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    log_total = highest + jnp.log(jnp.sum(jnp.exp(logits - highest[:, None]), axis=-1))
    return TargetScores(
        logprob=(target_logit - log_total).reshape(targets.shape),
        right=(target_logit >= highest).reshape(targets.shape),
    )
