"""One of two processes that read a checkpoint together; process 0 is asked to stop meanwhile.

`python -m tests.multihost.stopping_process CHECKPOINT PORT RANK`. Process 1 is slow to read an
array: process 0 has read it, has waited and has left when process 1 is through.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from ste_jax.checkpoints import checkpoint
from ste_jax.config.schema import MeshKnobs
from ste_jax.parallel.processes import initialize
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system import preemption
from ste_jax.system.errors import Preempted

STOPPED_AT = 3
"""The number of the array at which process 0 is asked to stop."""


def wait_for(path: Path, seconds: float) -> None:
    """Waits until a file is there, or the time is over."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def disturb_reading(directory: Path, rank: int) -> None:
    """Makes the reading of the array `STOPPED_AT` go as said above."""
    restore, calls = checkpoint.restore_arrays, 0

    def disturbed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        read = restore(*args)
        if calls == STOPPED_AT and rank == 0:
            preemption.request()
            (directory / "read").touch()
        elif calls == STOPPED_AT:
            wait_for(directory / "read", 60)
            wait_for(directory / "left", 10)
        return read

    checkpoint.restore_arrays = disturbed


def main(place: Path, port: str, rank: int) -> int:
    processes = initialize(f"localhost:{port}", 2, rank)
    disturb_reading(place.parent, rank)
    try:
        checkpoint.load_checkpoint(place, make_mesh(MeshKnobs(fsdp=2)))
    except Preempted as error:
        processes.leave(error)
        (place.parent / "left").touch()
        print(error)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
