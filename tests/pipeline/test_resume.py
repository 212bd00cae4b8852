"""A run that is killed anywhere and run again is the run that was never disturbed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from ste_jax.run.metrics_log import read_metrics
from tests import running
from tests.comparing import assert_identical


def begun(run: Path, part: str) -> bool:
    """Whether a partial file or directory with this part in its path was left by the kill."""
    return any(part in str(path) for path in run.rglob("*partial*"))


# Where the kill falls, and what shows that it fell inside: the work was begun and is not done.
PLACES = {
    "select": (
        "write:instructions/labels/:2",
        lambda run: (
            begun(run, "instructions/labels/")
            and len(list(run.glob("instructions/labels/0*.parquet"))) == 1
        ),
    ),
    "pair": (
        "write:pairs/kept/:2",
        lambda run: begun(run, "pairs/kept/") and len(list(run.glob("pairs/kept/0*.parquet"))) == 1,
    ),
    "annotate": (
        "write:iterations/1/judgments/:2",
        lambda run: (
            begun(run, "1/judgments/")
            and len(list(run.glob("iterations/1/judgments/0*.parquet"))) == 1
        ),
    ),
    "orbax save": (
        "orbax:train_state",
        lambda run: (
            list(run.rglob("*orbax-checkpoint-tmp*")) != []
            and not (run / "iterations/1/finetune.json").exists()
        ),
    ),
    "train step": (
        "step:3",
        lambda run: (
            (run / "iterations/1/train_state").exists()
            and not (run / "iterations/1/finetune.json").exists()
        ),
    ),
    "evaluate": (
        "write:iterations/1/evaluation/judgments:2",
        lambda run: (
            begun(run, "1/evaluation/judgments")
            and not (run / "iterations/1/evaluation.json").exists()
        ),
    ),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, Path]:
    """(config, run) of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("resume")
    config = running.write_config(root, **running.SMALL)
    run = root / "undisturbed"
    assert running.run(["run", str(config), "--dir", str(run)]) == 0
    return config, run


def kill_inside(config: Path, run: Path, name: str) -> None:
    place, proof = PLACES[name]
    status = running.run(["run", str(config), "--dir", str(run)], place=place)
    assert status == -signal.SIGKILL
    assert proof(run), f"the kill did not fall inside {name}"


def test_killed_in_every_stage_one_after_the_other(undisturbed, tmp_path):
    config, expected = undisturbed
    run = tmp_path / "run"
    for name in PLACES:
        kill_inside(config, run, name)
    assert running.run(["run", str(config), "--dir", str(run)]) == 0
    assert_identical(expected, run)
    assert not list(run.rglob("*partial*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_killed_once(undisturbed, tmp_path, name):
    config, expected = undisturbed
    run = tmp_path / "run"
    kill_inside(config, run, name)
    assert running.run(["run", str(config), "--dir", str(run)]) == 0
    assert_identical(expected, run)


def test_a_finished_run_does_nothing_the_second_time(undisturbed, tmp_path):
    config, expected = undisturbed
    run = tmp_path / "run"
    shutil.copytree(expected, run)
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}
    assert running.run(["run", str(config), "--dir", str(run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")} == kept
    before, after = (read_metrics_of(path) for path in (expected, run))
    assert before == after  # no work was logged
    assert_identical(expected, run)


def read_metrics_of(run: Path) -> list[dict]:
    from etils import epath

    return read_metrics(epath.Path(run))


def test_a_changed_knob_redoes_only_what_it_touches(undisturbed, tmp_path):
    config, expected = undisturbed
    run = tmp_path / "run"
    shutil.copytree(expected, run)
    words = ["run", str(config), "finetune.learning_rate=0.002", "--yes", "--dir", str(run)]
    assert running.run(words) == 0
    done = read_metrics_of(run)[len(read_metrics_of(expected)) :]
    stages = {each["stage"] for each in done if each["event"] == "work"}
    assert stages == {"validate", "evaluate"}
    assert {each["iteration"] for each in done if each["event"] == "work"} == {1}
    for table in ("instructions", "pairs", "iterations/1/judgments"):
        for path in (expected / table).rglob("*.parquet"):
            assert path.read_bytes() == (run / path.relative_to(expected)).read_bytes()


def test_a_stop_in_good_order_has_status_75_and_is_resumed(undisturbed, tmp_path):
    config, expected = undisturbed
    run = tmp_path / "run"
    process = running.start(["run", str(config), "--dir", str(run)])
    labels = run / "instructions" / "labels"
    while not list(labels.glob("0*.parquet")):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output
    assert "run the same command again" in output
    assert json.loads((run / "manifest.json").read_text())["shards"] == 3
    assert running.run(["run", str(config), "--dir", str(run)]) == 0
    assert_identical(expected, run)
