"""Does what is learnt depend on anything that is only measured?"""

from __future__ import annotations

from pathlib import Path

import yaml

from ste_jax.system.shipped import path_of
from tests.comparing import assert_same_arrays, assert_same_files
from tests.running import run, write_config

LEARNT = (
    "instructions/**/*.parquet",
    "pairs/**/*.parquet",
    "iterations/1/prompts/*.parquet",
    "iterations/1/judgments/*.parquet",
    "iterations/1/training/*.parquet",
    "iterations/1/curation.json",
    "iterations/1/finetune.json",
)
"""What something is learnt from, and how it was learnt."""


def test_labelled_sets_and_their_checker_change_nothing_that_is_learnt(tmp_path: Path) -> None:
    plain, measured = tmp_path / "plain", tmp_path / "measured"
    config = write_config(tmp_path, iterations=1)
    assert run(["run", str(config), "--dir", str(plain)]) == 0
    values = yaml.safe_load(config.read_text())
    some = tmp_path / "tasks.jsonl"
    some.write_text("".join(path_of("pico/same-task").read_text().splitlines(True)[:12]))
    values["evaluate"]["sets"] = [{"name": "tasks", "data": str(some), "traces": "pico"}]
    config.write_text(yaml.safe_dump(values))
    assert run(["run", str(config), "--dir", str(measured)]) == 0
    assert (measured / "iterations" / "1" / "evaluation" / "sets" / "tasks").is_dir()
    assert "sound" in (measured / "iterations" / "1" / "evaluation.json").read_text()
    assert "Step by step" in (measured / "report" / "index.html").read_text()
    for pattern in LEARNT:
        assert_same_files(plain, measured, pattern)
    checkpoint = Path("iterations", "1", "checkpoint")
    assert_same_arrays(plain / checkpoint, measured / checkpoint)
