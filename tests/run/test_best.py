"""Is it said which of its judges a run's name means, and what is missing?"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from etils import epath

from ste_jax.run.best import best_judge, locate, locate_and_say
from ste_jax.run.layout import RunDir
from ste_jax.system import files, progress
from tests.golden import archive


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run of two iterations, of which the second is the better."""
    run = RunDir(epath.Path(archive.unpack("plain", tmp_path) / "run"))
    for index, accuracy in ((1, 0.6), (2, 0.7)):
        measured(run, index, accuracy)
    return run


def measured(run: RunDir, index: int, accuracy: float) -> None:
    curve = run.iteration(index).loss_curve
    files.write_json(curve, {**files.read_json(curve), "best_accuracy": accuracy})


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    monkeypatch.setattr(progress, "note", lambda text: lines.append(("note", text)))
    monkeypatch.setattr(progress, "warn", lambda text: lines.append(("warning", text)))
    return lines


def put_aside(run: RunDir, index: int) -> None:
    """Move a judge aside, as a start with other knobs does before it trains another."""
    here, home = run.iteration(index), run.iteration(index).root / "set_aside" / "finetune-ab12"
    home.mkdir(parents=True)
    for place in (here.checkpoint, here.loss_curve):
        shutil.move(place, home / place.name)


def test_of_a_finished_run_a_line_says_which_judge_it_is(run, said):
    root = str(run.root)
    assert locate_and_say(root).iteration == 2
    measured(run, 1, 0.8)
    found = locate_and_say(root)
    assert found.iteration == 1 and found.path == run.iteration(1).checkpoint
    assert said == [
        ("note", f"the judge of {root} is that of iteration 2"),
        (
            "note",
            f"the judge of {root} is that of iteration 1, the best of 3 by validation accuracy",
        ),
    ]
    assert locate(root) == found and len(said) == 2


def test_the_seed_is_not_taken_for_a_judge_without_a_warning(run, said):
    put_aside(run, 2)
    locate_and_say(str(run.root))
    put_aside(run, 1)
    assert locate_and_say(str(run.root)).iteration == 0
    named = f"the judge of {run.root} is that of iteration"
    assert said == [
        ("warning", f"{named} 1: iteration 2 has no finished judge; 1 judge is set aside"),
        (
            "warning",
            f"{named} 0, the seed: iterations 1 and 2 have no finished judge; 2 judges are set "
            "aside",
        ),
    ]


def test_the_best_so_far_of_a_training_that_goes_on_is_not_counted(run):
    run.iteration(2).loss_curve.unlink()
    found = best_judge(run.root)
    assert (found.iteration, found.missing, found.set_aside) == (1, [2], 0)


def test_of_a_model_that_is_no_run_nothing_is_said(run, said):
    assert locate_and_say(str(run.iteration(1).checkpoint)).iteration is None
    assert not said
