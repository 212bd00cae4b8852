"""How are the caches of decoding made, and filled with prompts?

Shapes as in `programs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from ste_jax.models.config import ModelConfig
from ste_jax.models.kernels import Kernels
from ste_jax.parallel.sharding import constrain, partition

Cache = list[dict[str, Any]]
"""Keys and values: a dict of arrays with a first axis L for each group of the model's layers, or,
where the layers run as a Python loop, a dict without that axis for each layer."""

Axes = tuple[str | None, ...]
Shapes = tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]
"""Names and shapes of the arrays of each dict of a cache."""


def make_zeros(*, dtype: Any, axes: Axes, shapes: Shapes) -> Cache:
    """An empty cache."""
    return [
        {name: constrain(jnp.zeros(shape, dtype), axes) for name, shape in one} for one in shapes
    ]


def zero_shapes(*, dtype: Any, axes: Axes, shapes: Shapes) -> Cache:
    """What `make_zeros` would give, abstract."""
    mesh = jax.sharding.get_mesh()
    return [
        {
            name: jax.ShapeDtypeStruct(
                shape, dtype, sharding=NamedSharding(mesh, partition(shape, axes, mesh))
            )
            for name, shape in one
        }
        for one in shapes
    ]


def layers_of(config: ModelConfig, *, stacked: bool) -> Sequence[range]:
    """The layers of each dict of a cache."""
    return config.groups if stacked else [range(at, at + 1) for at in range(config.num_layers)]


def windows_of(config: ModelConfig, *, stacked: bool) -> list[int | None]:
    """The window, in tokens, of each dict of a cache; None where its layers see all tokens."""
    return [config.kind_of(layers[0]).window for layers in layers_of(config, stacked=stacked)]


def keys_transposed(kernels: Kernels, stacked: bool) -> bool:
    """Whether caches hold keys as [..., d, S], the layout that is fastest for plain products.

    A decoding kernel needs them laid as values are, [..., S, d]. For stacked layers the compiler
    for TPU writes whole heads, and would transpose all of a transposed past back at every round.
    """
    return kernels.decode is None and not stacked


def _by_layer(function: Callable[..., Any], stacked: bool, *values: Sequence[Any]) -> Cache:
    """Applies `function` to every layer's values; to those of a stacked group at once, along their
    first axis."""
    of_each = jax.vmap(function) if stacked else function
    return [of_each(*one) for one in zip(*values, strict=True)]


def load(*, buffer: Cache, piece: Cache, start: jax.Array, stacked: bool) -> Cache:
    """The buffer with a piece's keys and values from place `start` on."""

    def write(layer: Any, new: Any) -> Any:
        put = jax.lax.dynamic_update_slice_in_dim
        return {name: put(layer[name], new[name], start, axis=1) for name in ("k", "v")}

    return _by_layer(write, stacked, buffer, piece)


def fill(
    *,
    prefix: Cache,
    buffer: Cache,
    group: jax.Array,
    length: jax.Array,
    stacked: bool,
    keys_transposed: bool,
) -> Cache:
    """The prefixes, with the first `length` tokens of the buffer as the prompt of `group`."""

    def layer(into: Any, prompt: Any) -> Any:
        # All of the prompt, or under a window its end.
        room = into["prefix_v"].shape[2]
        first = jnp.maximum(length - room, 0)
        # What stands after the prompt is masked. But values must be finite to be multiplied by
        # zero, and keys such that they change no largest score.
        known = (jnp.arange(room) < length)[:, None]
        k, v = (
            jax.lax.dynamic_slice_in_dim(prompt[name], first, room, axis=1) for name in ("k", "v")
        )
        last = jax.lax.dynamic_slice_in_dim(k, jnp.minimum(length, room) - 1, 1, axis=1)
        k, v = jnp.where(known, k, jnp.where(length > 0, last, 0)), jnp.where(known, v, 0)
        k = k.swapaxes(1, 2) if keys_transposed else k
        put = jax.lax.dynamic_update_slice_in_dim
        return {
            "prefix_k": put(into["prefix_k"], k[None], group, axis=0),
            "prefix_v": put(into["prefix_v"], v[None], group, axis=0),
        }

    return _by_layer(layer, stacked, prefix, buffer)


load_jitted = jax.jit(load, donate_argnames="buffer", static_argnames="stacked")
fill_jitted = jax.jit(
    fill, donate_argnames="prefix", static_argnames=("stacked", "keys_transposed")
)
zeros_jitted = jax.jit(make_zeros, static_argnames=("dtype", "axes", "shapes"))
