"""Two processes of which one is asked to stop: does the other stop with it, wherever it is?"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.checkpoints.test_checkpoints import save
from tests.running import REPOSITORY, environment


def test_the_slower_one_does_not_go_on_alone_into_a_collective(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"
    save(place)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.multihost.stopping_process", str(place), port, str(rank)],
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=90)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [75, 75], "\n".join(said)
    assert "process 0 stopped: asked to stop" in said[1]
