"""What is said of a run before it begins?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import jax
from etils import epath

from ste_jax.config.schema import Config, MeshKnobs
from ste_jax.parallel.processes import Processes
from ste_jax.parallel.sharding import make_mesh
from ste_jax.run.changes import counted
from ste_jax.system import progress


def show_banner(config: Config, root: epath.Path, processes: Processes) -> None:
    """Say what runs, on what, how precisely and where it is kept. Process 0 alone."""
    if not processes.first:
        return
    decoding, finetune = config.decoding, config.finetune
    weights = " with int8 matrices" if decoding.weights == "int8" else ""
    facts = {
        "kept in": str(root),
        "seed": config.model,
        "devices": _devices(processes.count),
        "mesh": f"sampling on {_mesh(decoding.mesh, jax.local_devices())}, "
        f"training on {_mesh(finetune.mesh, jax.devices())}",
        "precision": f"sampling in {decoding.dtype}{weights}, training in {finetune.dtype} with "
        f"parameters in {finetune.param_dtype}",
    }
    progress.banner(f"run {config.name}: {counted(config.iterations, 'iterations')}", facts)


def _devices(processes: int) -> str:
    kinds = Counter(device.device_kind for device in jax.devices())
    found = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    return f"{found} in {processes} processes" if processes > 1 else found


def _mesh(knobs: MeshKnobs, devices: Sequence[jax.Device]) -> str:
    """The axes of a mesh that divide anything: `fsdp 4 x tensor 2`."""
    axes = make_mesh(knobs, devices).shape
    return " x ".join(f"{name} {size}" for name, size in axes.items() if size > 1) or "one device"
