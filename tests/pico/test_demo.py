"""Does the recipe teach the shipped seed? The demo's run, made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.running import run


@pytest.mark.slow
def test_one_iteration_makes_a_judge_of_the_seed(tmp_path: Path) -> None:
    small = ["select.train=200", "iterations=1"]
    assert run(["run", "pico", "--dir", str(tmp_path / "run"), *small], devices=2) == 0
    seed, judge = (
        json.loads((tmp_path / "run" / "iterations" / str(n) / "evaluation.json").read_text())
        for n in (0, 1)
    )
    for name, first in seed["sets"].items():
        last = judge["sets"][name]
        assert first["accuracy"] < 0.75 and last["accuracy"] > 0.85
        assert first["accuracy_ci95"][1] < last["accuracy_ci95"][0]
        assert last["consistent_accuracy"] > first["consistent_accuracy"] + 0.3
        assert last["sound"] > first["sound"] and last["unparsed"] <= 0.01
