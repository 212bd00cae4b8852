"""How is a program compiled for a TPU slice that is not at hand?

libtpu compiles for a named topology on any Linux machine. The compiled program gives the memory
that a chip needs and, counted by `hlo_cost`, the cost of a run. Nothing is run, and no device is
opened: a process that compiles for a topology cannot also use a TPU of its own.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from ste_jax.config.schema import MeshKnobs
from ste_jax.parallel.sharding import MESH_AXES, make_mesh
from ste_jax.planning.hlo import parse
from ste_jax.planning.hlo_cost import Cost, lines, total
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.system.hardware import CHIPS, Chip

HBM_ONLY = {"xla_vf_vmem_memory_space_assignment": False}
"""A compiler option that puts every array between two instructions into HBM. Without it, a
program's depth decides how much of its weights and caches is kept in VMEM, and programs of
different depths cannot be compared."""


def missing_libtpu() -> str:
    """A sentence that says why nothing can be compiled for TPU here; empty if it can."""
    found = importlib.util.find_spec("libtpu")
    if found is None or found.origin is None:  # a mere folder of that name has no origin
        return "libtpu is not installed: pip install 'jax[tpu]', on any x86-64 Linux machine"
    return ""


def topology_mesh(topology: str, knobs: MeshKnobs) -> Mesh:
    """The mesh of a slice such as `v5e:2x4`; its devices are only for compiling.

    Raises `RequestError` where there is no libtpu, no such topology or no such mesh of it, and
    `WorkError` where another process has libtpu to itself.
    """
    why = missing_libtpu()
    if why:
        raise RequestError(why)
    # Without this, libtpu asks the cloud which machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        reason = " ".join(str(error).split())
        if "lockfile" in reason:
            raise WorkError(
                f"{topology}: another process of this machine is using libtpu; wait for its end"
            ) from error
        raise RequestError(
            f"{topology}: not a topology that libtpu compiles for ({reason})"
        ) from error
    return make_mesh(knobs, slice_.devices)


def chip_of(mesh: Mesh) -> Chip:
    """The kind of chip in a mesh. Raises `RequestError` for an unknown one."""
    kind = mesh.devices.flat[0].device_kind
    if kind not in CHIPS:
        raise RequestError(f"no sizes are known of a {kind}; known are: {', '.join(CHIPS)}")
    return CHIPS[kind]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A program compiled for one device of a mesh."""

    text: str
    """The program's text after all of the compiler's passes."""
    argument_bytes: int
    """Bytes of the arguments: weights, caches and small arrays, also those written in place."""
    temporary_bytes: int
    """Bytes that it needs beside the arguments, with its code and its new arrays."""
    mesh: Mesh

    @property
    def bytes(self) -> int:
        """How many bytes of a device's memory it needs."""
        return self.argument_bytes + self.temporary_bytes

    def cost(self, unknown_trips: Sequence[float] = ()) -> Cost:
        """The cost of a run on one device; `unknown_trips` is as in `hlo_cost.lines`."""
        return total(lines(parse(self.text), unknown_trips))

    def sent(self, cost: Cost) -> dict[str, float]:
        """Bytes that a device sends in a run, by the mesh axes along which they go, as in
        "data+tensor"."""
        out: dict[str, float] = {}
        everyone = tuple(range(self.mesh.size))
        for devices, sent in cost.sent.items():
            places = np.unravel_index(devices or everyone, self.mesh.devices.shape)
            axes = [
                axis for axis, along in zip(MESH_AXES, places, strict=True) if np.ptp(along) > 0
            ]
            name = "+".join(axes)
            out[name] = out.get(name, 0.0) + sent
        return out


def compile_for(lowered: Any, mesh: Mesh, options: dict[str, Any] | None = None) -> Compiled:
    """Compiles a program that was lowered for `mesh`, with these compiler options.

    Raises `WorkError` where it does not fit the chips' memory.
    """
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            reason = " ".join(str(error).split())[:300]
            raise WorkError(f"the program does not fit a {chip_of(mesh).name}: {reason}") from error
        raise
    memory = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        text=compiled.as_text(),
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes + new,
        mesh=mesh,
    )
