"""A pico run that is stopped at random moments draws nothing again whose rows had finished."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import REPOSITORY


@pytest.mark.slow
def test_only_rows_in_hand_are_drawn_again(tmp_path: Path) -> None:
    """`python -m tests.disturbing` by itself does more: 30 stops, and 20 in the first seconds."""
    command = [sys.executable, "-m", "tests.disturbing", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--stops", "6", "--starts", "5"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert found["of_finished_rows"] <= 0
    for stop in found["stops"]:
        assert (
            stop["status"]
            in {"SIGKILL": (-9,), "SIGTERM": (-15, 75), "SIGINT": (-2, 130)}[stop["signal"]]
        )
    assert all(start["status"] in (-2, 130) for start in found["starts"])
