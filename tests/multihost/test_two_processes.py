"""The recipe on two processes that meet over gloo: the same run, divided."""

from __future__ import annotations

import json
import math
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from ste_jax.checkpoints.card import read_card
from tests import running
from tests.comparing import assert_identical, assert_same_files
from tests.reports import REPORTS


def start_two(config: Path, run: Path, place: str = "none") -> list[subprocess.Popen[str]]:
    """Start `ste run` on two processes; `place` is where process 1 is killed."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    words = ["run", str(config), "--dir", str(run), "--coordinator", f"localhost:{port}"]
    words += ["--processes", "2", "--process-id"]
    return [
        running.start([*words, str(index)], place=place if index == 1 else "none")
        for index in range(2)
    ]


def run_two(config: Path, run: Path, place: str = "none") -> list[int]:
    """Run `ste run` on two processes; a kill falls on process 1, and takes process 0 along."""
    both = start_two(config, run, place)
    if place != "none":
        both[1].communicate(timeout=600)
        both[0].kill()
    outputs = [process.communicate(timeout=600)[0] for process in both]
    if place == "none" and any(process.returncode for process in both):
        print("\n".join(outputs))
    return [process.returncode for process in both]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(config, run of one process, run of two)."""
    root = tmp_path_factory.mktemp("two")
    config = running.write_config(root, **running.SMALL)
    one, two = root / "one", root / "two"
    assert running.run(["run", str(config), "--dir", str(one)]) == 0
    assert run_two(config, two) == [0, 0]
    return config, one, two


def test_the_tables_before_the_first_fine_tuning_are_those_of_one_process(runs):
    _, one, two = runs
    for pattern in ("instructions/**/*.parquet", "pairs/**/*.parquet", "iterations/0/**/*.parquet"):
        assert_same_files(one, two, pattern)
    for name in ("prompts", "judgments", "training"):
        assert_same_files(one, two, f"iterations/1/{name}/*.parquet")
    assert_same_files(one, two, "iterations/0/evaluation.json")


def test_the_loss_curve_is_that_of_one_process(runs):
    _, one, two = runs
    curves = [json.loads((run / "iterations/1/finetune.json").read_text()) for run in (one, two)]
    losses = [[step["loss"] for step in curve["steps"]] for curve in curves]
    assert len(losses[0]) >= 4
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_each_process_is_sent_the_part_of_the_weights_that_it_lacks(runs):
    _, one, two = runs
    sizes = read_card(two / "iterations/1/checkpoint")["parameters"]
    received = {}
    for run, name in ((one, "metrics"), (two, "metrics"), (two, "metrics-00001")):
        events = map(json.loads, (run / f"{name}.jsonl").read_text().splitlines())
        received[run.name, name] = {
            event["bytes_received"] for event in events if event["event"] == "handed_over"
        }
    assert received["one", "metrics"] == {0}
    (sent,) = received["two", "metrics"]
    assert received["two", "metrics-00001"] == {sent}
    total = sum(4 * math.prod(size["shape"]) for size in sizes.values())
    # The mesh does not divide the norms' few elements, which both processes hold already.
    assert 0.4 * total < sent <= 0.5 * total


def test_all_counts_add_up(runs):
    from etils import epath

    from ste_jax.reporting.funnel import check_sums, funnel
    from ste_jax.run.layout import RunDir

    for run in runs[1:]:
        assert check_sums(funnel(RunDir(epath.Path(run)), REPORTS), REPORTS) == []


@pytest.mark.parametrize(
    "place", [pytest.param("write:iterations/1/judgments/:1", marks=pytest.mark.slow), "step:3"]
)
def test_killed_and_run_again_on_two_processes(runs, tmp_path, place):
    config, _, two = runs
    run = tmp_path / "run"
    assert run_two(config, run, place) == [-signal.SIGKILL, -signal.SIGKILL]
    assert not (run / "iterations/1/evaluation.json").exists()
    assert run_two(config, run) == [0, 0]
    assert_identical(two, run)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["instructions/labels", "iterations/1/train_state"])
def test_one_that_is_asked_to_stop_stops_both_in_good_order(runs, tmp_path, part):
    config, _, two = runs
    run = tmp_path / "run"
    both = start_two(config, run)
    while not (run / part).exists():
        assert all(process.poll() is None for process in both)
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)
    for process in both:
        process.communicate(timeout=600)
    assert [process.returncode for process in both] == [75, 75]
    assert run_two(config, run) == [0, 0]
    assert_identical(two, run)
