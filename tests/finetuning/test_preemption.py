"""Stopped by real signals at random moments, again and again, a fine-tuning comes to the same."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.running import REPOSITORY, environment

Child = subprocess.Popen[str]


def start(root: Path, devices: int = 1, *more: str, local: int | None = None) -> Child:
    command = [sys.executable, "-m", "tests.finetuning.preempted", str(root), str(devices), *more]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(local or devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(root: Path, devices: int = 2) -> list[Child]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [
        start(root, devices, f"localhost:{port}", str(index), local=devices // 2)
        for index in range(2)
    ]


def signalled(child: Child, name: signal.Signals, draw: random.Random, span: float) -> int:
    """Sends the signal some time within `span` seconds after the first step or the start of the
    loop; the exit status, 0 where the end came first."""
    assert child.stdout is not None
    lines: list[str] = []
    for line in child.stdout:
        lines.append(line)
        if line.startswith(("step", "ready")):
            break
    drain = threading.Thread(target=lambda: lines.extend(child.stdout or ()), daemon=True)
    drain.start()
    time.sleep(draw.uniform(0, span))
    child.send_signal(name)
    status = child.wait(timeout=300)
    drain.join()
    if any(line.startswith("done") for line in lines):
        assert status in (0, -name), "".join(lines)  # it may come while the interpreter ends
        return 0
    ended_by = 75 if name == signal.SIGTERM else -name
    assert status == ended_by, "".join(lines)
    return status


def finish(root: Path, devices: int = 1) -> None:
    child = start(root, devices)
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 0, output


def came_to(root: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(root / "kept.npz") as kept:
        return json.loads((root / "came-to.json").read_text()), dict(kept)


def assert_same(root: Path, undisturbed: Path) -> None:
    """The loss curve, the validations and the weights, bit for bit."""
    (result, weights), (want, wanted) = came_to(root), came_to(undisturbed)
    assert result == want
    for path, value in wanted.items():
        assert np.array_equal(weights[path], value), path


def assert_alike(root: Path, undisturbed: Path) -> None:
    """As above, to what another order of sums makes of it."""
    (result, weights), (want, wanted) = came_to(root), came_to(undisturbed)
    for step, expected in zip(result["steps"], want["steps"], strict=True):
        assert step["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    for path, value in wanted.items():
        np.testing.assert_allclose(weights[path], value, atol=1e-4, err_msg=path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    finish(root)
    return root


def disturb(root: Path, times: int, seed: int, undisturbed: Path) -> None:
    """Ends processes so many times by each signal, in a random order. One that comes to its end
    before its signal must have come to the same; then it is begun again."""
    draw = random.Random(seed)
    left = [signal.SIGKILL, signal.SIGTERM] * times
    draw.shuffle(left)
    while left:
        if signalled(start(root), left[-1], draw, span=3.0):
            left.pop()
            continue
        assert_same(root, undisturbed)
        shutil.rmtree(root)
        root.mkdir()


def test_stopped_twice_by_each_signal(undisturbed: Path, tmp_path: Path) -> None:
    disturb(tmp_path, 2, seed=1, undisturbed=undisturbed)
    finish(tmp_path)
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_stopped_ten_times_by_each_signal(seed: int, undisturbed: Path, tmp_path: Path) -> None:
    disturb(tmp_path, 10, seed, undisturbed)
    finish(tmp_path)
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_resumed_on_another_mesh(undisturbed: Path, tmp_path: Path) -> None:
    draw = random.Random(2)
    for devices in (4, 1, 2):
        signalled(start(tmp_path, devices), signal.SIGKILL, draw, span=2.0)
    finish(tmp_path)
    assert_alike(tmp_path, undisturbed)


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on_and_the_reverse(
    undisturbed: Path, tmp_path: Path
) -> None:
    draw = random.Random(3)
    for last in (1, 2):
        root = tmp_path / str(last)
        root.mkdir()
        if last == 2:
            assert signalled(start(root, 2), signal.SIGTERM, draw, span=1.0) == 75
        both = start_two(root)
        if last == 1:
            assert signalled(both[1], signal.SIGTERM, draw, span=1.0) == 75
        outputs = [child.communicate(timeout=300)[0] for child in both]
        assert [child.returncode for child in both] == [75 if last == 1 else 0] * 2, outputs
        if last == 1:
            finish(root, 2)
        assert_alike(root, undisturbed)
