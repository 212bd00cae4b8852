"""A run says what begins and what it does; its curve can be watched, and is drawn once."""

from __future__ import annotations

import contextlib
import json

import pytest

from ste_jax.cli import main
from ste_jax.commands.status import status
from ste_jax.pipeline.context import Context
from ste_jax.run.layout import RunDir
from ste_jax.system import progress
from tests.golden import archive
from tests.golden.variants import running


def files_of(run):
    return sorted(path.name for path in (run.root / "tensorboard" / "recipe").iterdir())


def test_a_run_that_has_nothing_to_do_says_what_it_is_and_draws_no_line_twice(finished, capsys):
    run, config = finished
    drawn = files_of(run)
    assert 1 <= len(drawn) <= len(run.iterations())  # one for each second in which it was drawn
    assert main(["run", str(config), "--dir", str(run.root), "--log-format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (banner,) = [line for line in lines if line["kind"] == "run"]
    assert banner["text"].startswith("run tiny: ") and banner["kept in"] == str(run.root)
    assert "training on " in banner["mesh"] and "float32" in banner["precision"]
    assert files_of(run) == drawn


def test_the_curve_by_iteration(finished):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, _ = finished
    found = events.EventAccumulator(str(run.root / "tensorboard" / "recipe"))
    found.Reload()
    points = [(each.step, each.value) for each in found.Scalars("accuracy/held-out")]
    measured = [run.iteration(step).evaluation for step, _ in points]
    accuracies = [json.loads(path.read_text())["accuracy"] for path in measured]
    assert [step for step, _ in points] == [each.index for each in run.iterations()]
    assert [value for _, value in points] == pytest.approx(accuracies)


def test_a_stages_command_says_what_it_did(finished, capsys):
    run, _ = finished
    assert main(["annotate", str(run.root), "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("annotate 1: there was no work to do\n\nannotate 1: what is there\n")
    assert said.err == ""


@pytest.mark.parametrize("variant", ["plain", "dpo_sft"])
def test_a_run_counts_the_steps_that_its_status_counts(variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(Context, "generator")
    run, names, totals = archive.unpack(variant, tmp_path) / "run", [], []

    @contextlib.contextmanager
    def steps(title, total):
        totals.append(total)
        yield names.append

    monkeypatch.setattr(progress, "steps", steps)
    assert main(running(variant)) == 0
    assert names == [step["step"] for step in status(str(run))["steps"]]
    assert totals == [len(names)]


def test_what_a_step_has_found_is_said_as_it_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(Context, "generator")
    here = RunDir(archive.unpack("plain", tmp_path) / "run").iteration(2)
    measured, kept = (json.loads(each.read_text()) for each in (here.evaluation, here.curation))
    for each in (here.evaluation, here.curation):
        each.unlink()
    assert main([*running("plain"), "--log-format", "json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    curated, evaluated = [line for line in lines if line["kind"] == "found"]
    assert curated["stage"] == "iteration 2 of 2: curate"
    assert curated["kept"] == sum(kept["kept"].values())
    assert curated["of"] == curated["kept"] + sum(kept["dropped"].values())
    assert evaluated["stage"] == "iteration 2 of 2: evaluate"
    assert evaluated["step_name"] == "evaluate 2"
    assert evaluated["accuracy/held-out"] == measured["accuracy"]
    for name, of_set in measured["sets"].items():
        assert evaluated[f"accuracy/{name}"] == of_set["accuracy"]
