"""How does each token get to the few experts that its router chooses, without any being dropped?

Shapes: `B` batch, `T` time, `N = B * T` tokens, `D` model, `E` experts, `X` experts per token, `F`
an expert's inner size.

Tokens are sorted by expert and multiplied in groups of unequal size (`jax.lax.ragged_dot`), so an
expert takes as many as come. Over a mesh every device holds some experts whole or in slices of `F`:
the tokens of the `expert` axis are gathered, each device does what its own experts have to do, and
the sums go back to where the tokens came from.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ste_jax.parallel.sharding import partition

EXPERT_AXIS = "expert"
"""The mesh axis that experts are divided over."""


class Experts(NamedTuple):
    """The matrices of a layer's experts."""

    gate: jax.Array
    """[E,D,F]"""
    up: jax.Array
    """[E,D,F]"""
    down: jax.Array
    """[E,F,D]"""
    gate_scale: jax.Array | None = None
    """[E,F]: what a matrix in int8 is multiplied by, after the product."""
    up_scale: jax.Array | None = None
    """[E,F]"""
    down_scale: jax.Array | None = None
    """[E,D]"""


class Choice(NamedTuple):
    """Which experts each token goes to; the reference's order of operations (Mixtral, Qwen3)."""

    share: jax.Array
    """[B,T,X] float32."""
    expert: jax.Array
    """[B,T,X] int32."""


def choose(logits: jax.Array, count: int, normalize: bool) -> Choice:
    """The `count` likeliest experts by router `logits` [B,T,E], with their probabilities."""
    share, expert = jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), count)
    if normalize:
        share = share / jnp.sum(share, axis=-1, keepdims=True)
    return Choice(share, expert)


def mix_experts(x: jax.Array, choice: Choice, experts: Experts) -> jax.Array:
    """What the chosen experts make of `x` [B,T,D], weighted by their shares -> [B,T,D].

    Inside `with jax.set_mesh(mesh)` the experts' matrices are divided by the sharding rules.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _of_these(x, choice, experts, first=0)
    tokens = partition(x.shape, ("batch", None, None), mesh)
    widening = partition(experts.gate.shape, ("experts", None, "mlp"), mesh)
    narrowing = partition(experts.down.shape, ("experts", "mlp", None), mesh)
    divided = widening[0] is not None
    sliced = widening[2] or ()
    travels = divided and EXPERT_AXIS in (tokens[0] or ())

    def of_a_device(x: jax.Array, choice: Choice, experts: Experts) -> jax.Array:
        first: jax.Array | int = 0
        if divided:
            first = jax.lax.axis_index(EXPERT_AXIS) * experts.gate.shape[0]
        if travels:
            x, choice = jax.tree.map(
                partial(jax.lax.all_gather, axis_name=EXPERT_AXIS, tiled=True), (x, choice)
            )
        out = _of_these(x, choice, experts, first)
        if sliced:
            out = jax.lax.psum(out, sliced)
        if travels:
            out = jax.lax.psum_scatter(out, EXPERT_AXIS, tiled=True)
        elif divided:
            out = jax.lax.psum(out, EXPERT_AXIS)
        return out

    matrices = (widening, widening, narrowing)
    scales = tuple(PartitionSpec(spec[0], spec[2]) for spec in matrices)
    specs: tuple[Any, Any, Any] = (tokens, (tokens, tokens), (*matrices, *scales))
    out: jax.Array = jax.shard_map(
        lambda x, choice, experts: of_a_device(x, Choice(*choice), Experts(*experts)),
        mesh=mesh,
        in_specs=specs,
        out_specs=tokens,
        check_vma=False,
    )(x, tuple(choice), tuple(experts))
    return out


def _of_these(x: jax.Array, choice: Choice, experts: Experts, first: jax.Array | int) -> jax.Array:
    """The part of `mix_experts` that the given experts compute; the first of them is number `first`
    of all experts."""
    here, times = experts.gate.shape[0], choice.expert.shape[-1]
    tokens = x.reshape(-1, x.shape[-1])
    expert = choice.expert.reshape(-1) - first
    mine = (expert >= 0) & (expert < here)
    # Those of other devices go to the end, behind the last group.
    expert = jnp.where(mine, expert, here)
    order = jnp.argsort(expert, stable=True)
    sizes = jnp.bincount(expert, length=here + 1)[:here].astype(jnp.int32)
    # Rows behind the last group belong to no expert here, and on some backends neither their
    # product nor its gradient is zero: both are masked.
    ours = mine[order][:, None]
    sorted_tokens = jnp.where(ours, tokens[order // times], 0)

    def grouped(rows: jax.Array, matrices: jax.Array, scale: jax.Array | None) -> jax.Array:
        out = jax.lax.ragged_dot(rows, matrices.astype(x.dtype), sizes)
        if scale is None:
            return out
        # Those of other devices have a scale that is not theirs, and are masked.
        return (out * scale[expert[order]]).astype(x.dtype)

    gate = jax.nn.silu(grouped(sorted_tokens, experts.gate, experts.gate_scale))
    inner = gate * grouped(sorted_tokens, experts.up, experts.up_scale)
    out = jnp.where(ours, grouped(inner, experts.down, experts.down_scale), 0)
    by_token = out[jnp.argsort(order)].reshape(*choice.share.shape, -1)
    return jnp.einsum("btx,btxd->btd", choice.share.astype(x.dtype), by_token)
