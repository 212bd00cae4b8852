"""A fine-tuning in a process of its own, to be stopped from outside:
`python -m tests.finetuning.preempted ROOT DEVICES [COORDINATOR PROCESS]`.

It prints a line per step, stops in good order on SIGTERM (status 75), and leaves what it came to in
`ROOT/came-to.json` and `ROOT/came-to.npz`. With a coordinator it is one of two processes, of which
each has half of the devices.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from ste_jax.config.schema import MeshKnobs
from ste_jax.models.decoder import Decoder
from ste_jax.system import preemption
from ste_jax.system.errors import Preempted

PACE = 0.03
"""Seconds that each step and each moment of a validation takes, so that a signal falls inside."""


def main() -> int:
    """Trains; the exit status."""
    root, devices = epath.Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        jax.distributed.initialize(sys.argv[3], num_processes=2, process_id=int(sys.argv[4]))

    from ste_jax.models.parameters import parameters_of
    from ste_jax.parallel.sharding import make_mesh

    preemption.install()  # after JAX, which else takes the signal for itself
    if jax.process_count() > 1:
        preemption.stop_together()

    from tests.finetuning.small import Trained

    mesh = make_mesh(MeshKnobs(), jax.devices()[:devices])

    class Watched(Trained):
        """Slow enough to be met anywhere."""

        def validate(
            self, model: Decoder, step: int, release: Callable[[], None]
        ) -> dict[str, Any]:
            for _ in range(8):
                time.sleep(PACE)
                if jax.process_count() == 1:  # several agree on it after the next step
                    preemption.poll()
            return super().validate(model, step, release)

        def save_model(self, model: Decoder, step: int, metrics: dict[str, Any]) -> None:
            """Kept outside of this process: a later one may have no better model."""
            whole = jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P()))
            arrays = {path: np.asarray(whole(x)) for path, x in parameters_of(model).items()}
            if jax.process_index() == 0:
                building = root / "kept.partial.npz"
                np.savez(building, **arrays)
                building.replace(root / "kept.npz")

    trained = Watched(root, epochs=6.0)
    trained.mesh = mesh
    trained.stop = preemption.requested
    print("ready", flush=True)

    def log(event: dict[str, Any]) -> None:
        print(f"step {event['step']}", flush=True)
        time.sleep(PACE)

    trained.log = log
    trained.model = sharded_model(mesh)
    try:
        result = trained.run()
    except Preempted as stopped:
        print(stopped, flush=True)
        return 75
    if jax.process_index() == 0:
        (root / "came-to.json").write_text(json.dumps(dataclasses.asdict(result)))
    print("done", flush=True)
    return 0


def sharded_model(mesh: jax.sharding.Mesh) -> Decoder:
    """The small model with its weights on the mesh, of which another process may have a part."""
    from ste_jax.models.parameters import parameters_of, with_parameters
    from ste_jax.parallel.sharding import parameter_sharding
    from tests.finetuning.small import CONFIG, small_model

    model = small_model()
    values = {}
    for path, value in parameters_of(model).items():
        whole, axes = np.asarray(value), CONFIG.parameters()[path].axes
        place = parameter_sharding(whole.shape, axes, mesh)
        values[path] = jax.make_array_from_callback(whole.shape, place, whole.__getitem__)
    return with_parameters(model, values)


if __name__ == "__main__":
    sys.exit(main())
