"""Is the making of the seed resumed where it was stopped?"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ste_jax.pico import make_seed
from tests.running import REPOSITORY


def start(root: Path) -> subprocess.Popen[str]:
    """Make a seed of a few dozen steps, with the whole command."""
    command = [sys.executable, "-m", "ste_jax.pico.make_seed", "--part", "0.004"]
    command += ["--out", str(root / "seed"), "--work", str(root / "work")]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def steps(progress: str) -> list[int]:
    """The numbers on the progress bar of the first phase."""
    return [int(number) for number in re.findall(r"skills:[^\r]*? (\d+)/\d+ \[", progress)]


@pytest.mark.slow
def test_a_stopped_making_goes_on_and_a_finished_one_only_measures(tmp_path: Path) -> None:
    first = start(tmp_path)
    assert first.stderr is not None
    seen = ""
    deadline = time.monotonic() + 600
    while 2 not in steps(seen) and time.monotonic() < deadline:
        more = first.stderr.read(20)
        assert more, seen
        seen += more
    first.send_signal(signal.SIGTERM)
    _, rest = first.communicate(timeout=600)
    assert first.returncode == 75, rest
    stopped = re.search(r"stopped after step (\d+) of (\d+)", rest)
    assert stopped is not None and int(stopped[1]) < int(stopped[2])

    second = start(tmp_path)
    told, progress = second.communicate(timeout=900)
    assert second.returncode == 0, progress
    assert min(number for number in steps(progress) if number) == int(stopped[1]) + 1
    made = tmp_path / "seed"
    skills = json.loads((made / "skills.json").read_text())
    assert skills == json.loads(told[told.index("{\n") :])
    weights = (made / "model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json"} <= {path.name for path in made.iterdir()}

    third = start(tmp_path)
    _, progress = third.communicate(timeout=900)
    assert third.returncode == 0 and not any(steps(progress))
    assert (made / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("few", "all_", "score", "counts"),
    [
        ((0.60, 1.0), (0.61, 0.99), 0.993, [300, 2000]),
        ((0.64, 1.0), (0.70, 1.0), 0.917, [300, 2000]),
        ((0.61, 1.0), (0.62, 0.97), 0.0, [300, 2000]),
        ((0.61, 0.97), None, 0.0, [300]),
        ((0.717, 1.0), None, 0.45, [300]),
        ((0.5, 0.0), None, 0.0, [300]),
    ],
    ids=["near", "near-at-first-sight", "unparsed", "unparsed-at-once", "far", "no-judge"],
)
def test_the_model_is_taken_that_judges_nearest(few, all_, score, counts) -> None:
    asked: list[int] = []

    def measure(model: object, count: int) -> dict[str, float]:
        asked.append(count)
        judge, parsed = few if count == 300 else all_
        return {"judge": judge, "judge_parsed": parsed}

    validate = make_seed.nearness(0.617, measure, 2000, lambda step, found: None)
    assert validate(None, make_seed.FIRST_JUDGED - 1) == {"accuracy": 0.0}
    assert validate(None, make_seed.FIRST_JUDGED)["accuracy"] == pytest.approx(score)
    assert asked == counts
