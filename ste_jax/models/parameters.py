"""How are a model's parameters named, and how is it known that they are the same bits?

Outside the model's own code its parameters are a flat mapping of path to array, by the paths that
`ModelConfig.parameters` declares (`embed`, `layers.0.q`). A sum over an array's bits tells whether
it came back from disk as it went there: Orbax's files hold none over the values (a flipped bit in
them restores without complaint).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ste_jax.models.decoder import Decoder

Parameters = dict[str, jax.Array]
_SLICE = 1 << 20
"""How many elements `checksum` takes at a time on a CPU; the fastest number that was measured."""


def parameters_of(model: Decoder) -> Parameters:
    """The model's arrays by path, in the order of paths; an abstract model gives their shapes."""
    _, state = nnx.split(model)
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    return {path: flat[path].get_value() for path in sorted(flat)}


def with_parameters(model: Decoder, values: Mapping[str, Any]) -> Decoder:
    """A model like `model` (which may be abstract) with these arrays."""
    graph, state = nnx.split(model)
    flat = [
        (path, variable.replace(values[".".join(map(str, path))]))
        for path, variable in nnx.to_flat_state(state)
    ]
    out: Decoder = nnx.merge(graph, nnx.from_flat_state(flat))
    return out


def checksum(array: jax.Array) -> jax.Array:
    """A sum over the bits of an array, uint32: the same on any mesh, and other if any element is.

    Each element's bits are multiplied by an odd number that depends on its place and summed modulo
    2^32. That arithmetic is exact in any order, so the sum does not depend on the sharding.
    """
    on_one_cpu = jax.default_backend() == "cpu" and len(array.sharding.device_set) == 1
    # Beyond 2^31 elements 32 bits could not say where a slice begins.
    by_slices = on_one_cpu and _SLICE < array.size < 2**31
    total: jax.Array = _sum_of_slices(array) if by_slices else _sum_of_all(array)
    return total


@jax.jit
def _sum_of_all(array: jax.Array) -> jax.Array:
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place = place * jnp.uint32(size % 2**32) + index
    return _sum(array, place)


@jax.jit
def _sum_of_slices(array: jax.Array) -> jax.Array:
    """The same sum, slice by slice. On a CPU, XLA writes the terms of a sum into memory: those of a
    slice are few enough for the processor's cache."""
    flat = array.reshape(-1)
    count, rest = divmod(flat.size, _SLICE)
    places = jax.lax.iota(jnp.uint32, _SLICE)

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        first = index * _SLICE
        part = jax.lax.dynamic_slice(flat, (first,), (_SLICE,))
        return total + _sum(part, first.astype(jnp.uint32) + places)

    total: jax.Array = jax.lax.fori_loop(0, count, add, jnp.uint32(0))
    begin = count * _SLICE
    return total + _sum(flat[begin:], jnp.uint32(begin) + places[:rest])


def _sum(array: jax.Array, place: jax.Array) -> jax.Array:
    bits = array
    if not jnp.issubdtype(array.dtype, jnp.unsignedinteger):
        bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)
