"""How is each array divided over the devices?

Arrays carry logical axis names (`embed`, `q_heads`, `batch`, ...); `RULES` is the one table that
maps these to the axes of the mesh. A dimension that its mesh axis does not divide is kept whole on
that axis (SmolLM2 has 9 heads and 3 kv heads), so any model runs on any mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ste_jax.config.schema import MeshKnobs
from ste_jax.system.errors import RequestError

MESH_AXES = ("data", "fsdp", "expert", "tensor")


class OtherDevices(RequestError):
    """A mesh is for another number of devices than there are here."""


RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "rows": ("data", "fsdp", "expert", "tensor"),
    "vocab": ("tensor",),
    "experts": ("expert",),
    "embed": ("fsdp", "expert"),
    "q_heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "layers": (),
    "lora": (),
}
"""Logical axis -> the mesh axes that divide it, outermost first."""


def make_mesh(knobs: MeshKnobs, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `devices` (default: all, of every process) with axes `MESH_AXES`.

    One size may be -1: what is left of the devices.

    Raises:
      OtherDevices: the sizes do not multiply to the number of devices.
      RequestError: they are no sizes.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(knobs, axis) for axis in MESH_AXES}
    asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise RequestError(f"mesh {asked}: only one axis may be -1")
    if any(size < 1 for size in sizes.values() if size != -1):
        raise RequestError(f"mesh {asked}: a size is a positive number, or -1 for what is left")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        wanted = f"{'a multiple of ' if free else ''}{fixed} device{'s' if fixed > 1 else ''}"
        kind = devices[0].device_kind
        raise OtherDevices(f"mesh {asked} is for {wanted}; here are {len(devices)} ({kind})")
    shape = tuple(sizes.values())
    # Auto: the compiler places what is not constrained, so the model's code names no mesh.
    types = (AxisType.Auto,) * len(MESH_AXES)
    try:
        return jax.make_mesh(shape, MESH_AXES, devices=devices, axis_types=types)
    except NotImplementedError:
        # A size may be no product of the slice's own sizes (8 on 4x4x4).
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(placed, MESH_AXES, axis_types=types)


def partition(
    shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The mesh axes of each dimension of an array with these logical `axes` (None: kept whole).

    A mesh axis divides one dimension at most, the first that its rule gives it to.
    """
    dimensions: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    for size, axis in zip(shape, axes, strict=True):
        chosen: list[str] = []
        for mesh_axis in RULES[axis] if axis is not None else ():
            pieces = math.prod(mesh.shape[a] for a in [*chosen, mesh_axis])
            if mesh.shape[mesh_axis] > 1 and mesh_axis not in used and size % pieces == 0:
                chosen.append(mesh_axis)
        used.update(chosen)
        dimensions.append(tuple(chosen) or None)
    return PartitionSpec(*dimensions)


def parameter_sharding(shape: Sequence[int], axes: Sequence[str], mesh: Mesh) -> NamedSharding:
    """The sharding of a parameter of this shape and these logical axes."""
    return NamedSharding(mesh, partition(shape, axes, mesh))


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """The sharding of every parameter of an `nnx.State`, as a tree of the same structure.

    `state` may be abstract (`ShapeDtypeStruct` values). Its variables carry their logical axes.
    """

    def place(variable: Any) -> Any:
        value = variable.get_value()
        return variable.replace(parameter_sharding(value.shape, variable.axes, mesh))

    return jax.tree.map(place, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Constrains the sharding of `x` by the rules, inside `with jax.set_mesh(mesh)`; without a mesh
    it does nothing.

    Results are the same either way; on several devices the constraint keeps activations divided by
    batch, so that it is the parameters that are gathered (FSDP).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    held: jax.Array = jax.lax.with_sharding_constraint(x, partition(x.shape, axes, mesh))
    return held


Placed = tuple[Sequence[int], Sequence[str | None]]
"""An array's shape and logical axes."""


def over_mesh(
    function: Callable[..., jax.Array], inputs: Sequence[Placed], output: Placed
) -> Callable[..., jax.Array]:
    """Makes each device run `function` on its part of the inputs, inside `with jax.set_mesh(mesh)`.

    Inputs and output are divided by the rules, as `constrain` does it; nothing is exchanged.
    Without a mesh, or on a single device, the result is `function` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    specs = tuple(partition(*placed, mesh) for placed in inputs)
    # Undivided arrays are computed alike on all devices; kernels do not declare it, so no check.
    run: Callable[..., jax.Array] = jax.shard_map(
        function, in_specs=specs, out_specs=partition(*output, mesh), check_vma=False
    )
    return run
