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


@jax.jit
def checksum(array: jax.Array) -> jax.Array:
    """A sum over the bits of an array, uint32: the same on any mesh, and other if any element is.

    Each element's bits are multiplied by an odd number that depends on its place and summed modulo
    2^32. That arithmetic is exact in any order, so the sum does not depend on how the array lies.
    """
    bits = array
    if not jnp.issubdtype(array.dtype, jnp.unsignedinteger):
        bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place = place * jnp.uint32(size % 2**32) + index
    return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)
