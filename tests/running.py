"""Runs of the tiny model in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests import tiny

REPOSITORY = Path(__file__).parent.parent
SMALL = {
    "iterations": 1,
    "pool__limit": 500,
    "select__train": 90,
    "select__heldout": 60,
    "pair__min_answer_chars": 2,
    "finetune__batch_rows": 2,
    "finetune__epochs": 6.0,
}
"""Changes to the tiny config for a run of half a minute."""


def write_config(root: Path, **changes: Any) -> Path:
    """The tiny run's config, model, pool and templates in `root`."""
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny.config(root, **changes)))
    return path


def environment(devices: int = 1) -> dict[str, str]:
    """Of a process with one CPU thread per device: the same program gives the same bits."""
    flags = (
        os.environ["XLA_FLAGS"],
        f"--xla_force_host_platform_device_count={devices}",  # of two that are named the last holds
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    )
    return {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}


def start(words: list[str], *, place: str = "none", devices: int = 1) -> subprocess.Popen[str]:
    """Start `ste` with these words, to be killed inside `place` (see `tests/killing.py`)."""
    command = [sys.executable, "-m", "tests.killing", place, "--", *words]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(words: list[str], *, place: str = "none", devices: int = 1, timeout: float = 600) -> int:
    """Run `ste` to its end; returns its status (negative: the signal that ended it)."""
    process = start(words, place=place, devices=devices)
    output, _ = process.communicate(timeout=timeout)
    if process.returncode not in (0, -signal.SIGKILL):
        print(output)
    return process.returncode
