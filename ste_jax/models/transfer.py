"""How do weights pass from the mesh that trains them to the one that decodes with them?

In memory, array by array, so that beside the model in its old and its new place there is never more
than one array. Where the new mesh is one process's own, every process has its copy made at the same
time: all of them together are one mesh with a further axis, over which the array is whole, and a
process's part of the result is its copy. So the compiler gathers from where each piece is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import Parameters, parameters_of, with_parameters
from ste_jax.parallel.sharding import parameter_sharding

_COPIES = "copies"
"""The axis over processes."""

Region = tuple[tuple[int, int], ...]
"""Begin and end along each dimension of an array."""


def hand_over(
    values: Mapping[str, jax.Array],
    axes: Mapping[str, Sequence[str]],
    mesh: Mesh,
    dtype: Any,
) -> tuple[Parameters, int]:
    """The same arrays on `mesh` in another type; `axes` are their logical axes.

    `mesh` is either of this process's devices, as many as every process has, or of the devices that
    the arrays are on. All processes call this together, with meshes of one form.

    Returns:
      The arrays, and how many bytes of them this process's devices did not hold before: what has to
      come from elsewhere, after the change of type. How often a collective passes a byte on is not
      in it.
    """
    placed: Parameters = {}
    received = 0
    for path in sorted(values):
        # The type first: what is sent is then the smaller.
        value = values[path].astype(jnp.dtype(dtype))
        sharding = parameter_sharding(value.shape, axes[path], mesh)
        if value.is_fully_addressable or not sharding.is_fully_addressable:
            placed[path] = jax.device_put(value, sharding)
        else:
            placed[path] = _copy_to_each_process(value, sharding)
        # Else the next array's gathering begins beside this one's.
        jax.block_until_ready(placed[path])
        received += _missing(placed[path], value) * value.dtype.itemsize
    return placed, received


def hand_over_model(model: Decoder, mesh: Mesh, dtype: str) -> tuple[Decoder, int]:
    """The same model with its arrays on another mesh and in another type, and how many bytes this
    process was sent for it; see `hand_over`."""
    axes = {path: declared.axes for path, declared in model.config.parameters().items()}
    placed, received = hand_over(parameters_of(model), axes, mesh, dtype)
    moved = with_parameters(model, placed)
    moved.dtype = jnp.dtype(dtype)
    return moved, received


def on_mesh(model: Decoder, mesh: Mesh, dtype: str) -> Decoder:
    """The same model with its arrays on another mesh and in another type."""
    return hand_over_model(model, mesh, dtype)[0]


def _copy_to_each_process(value: jax.Array, sharding: NamedSharding) -> jax.Array:
    mesh, shape = sharding.mesh, sharding.mesh.devices.shape
    of_process: dict[int, list[Any]] = {}
    devices: set[Any] = value.sharding.device_set
    for device in sorted(devices, key=lambda device: device.id):
        of_process.setdefault(device.process_index, []).append(device)
    copies = np.array([np.reshape(of_process[index], shape) for index in sorted(of_process)])
    everywhere = Mesh(copies, (_COPIES, *mesh.axis_names))
    made = jax.device_put(value, NamedSharding(everywhere, sharding.spec))
    own = Mesh(np.reshape(of_process[jax.process_index()], shape), mesh.axis_names)
    own_sharding = NamedSharding(own, sharding.spec)
    by_device = {shard.device: shard.data for shard in made.addressable_shards}
    mine = jax.make_array_from_single_device_arrays(
        value.shape, own_sharding, [by_device[device] for device in own.devices.flat]
    )
    # `mesh` may have its devices in another order.
    placed: jax.Array = jax.device_put(mine, sharding)
    return placed


def _missing(after: jax.Array, before: jax.Array) -> int:
    """How many elements this process's devices hold now and did not before."""
    held = _regions(before)
    return sum(
        _volume(region) - sum(_volume(_overlap(region, other)) for other in held)
        for region in _regions(after)
    )


def _regions(array: jax.Array) -> set[Region]:
    """What this process's devices hold of an array; each region once."""
    found = set()
    for shard in array.addressable_shards:
        spans = zip(shard.index, array.shape, strict=True)
        found.add(tuple(span.indices(size)[:2] for span, size in spans))
    return found


def _overlap(one: Region, two: Region) -> Region:
    spans = zip(one, two, strict=True)
    return tuple((max(a[0], b[0]), min(a[1], b[1])) for a, b in spans)


def _volume(region: Region) -> int:
    return math.prod(max(end - begin, 0) for begin, end in region)
