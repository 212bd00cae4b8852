"""Does a dry run say what a start would make again and why, and write nothing?"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from etils import epath

from ste_jax.cli import main
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.curate import counted
from ste_jax.run.layout import RunDir
from ste_jax.system import files
from ste_jax.system.errors import RequestError
from tests.golden import archive
from tests.golden.variants import running


@pytest.fixture
def asked(tmp_path: Path, monkeypatch, capsys):
    """Asks what a start of a run that an earlier version finished would do: the lines; no model is
    loaded and no file is touched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(Context, "generator")

    def ask(variant: str, *overrides: str) -> list[str]:
        if not (tmp_path / variant).exists():
            archive.unpack(variant, tmp_path)
        before = stamps(tmp_path)
        capsys.readouterr()
        assert main([*running(variant), "--dry-run", *overrides]) == 0
        assert stamps(tmp_path) == before
        return capsys.readouterr().out.splitlines()

    return ask


def stamps(root: Path) -> dict[Path, tuple[int, int]]:
    paths = sorted(root.rglob("*"))
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


@pytest.mark.parametrize("variant", ["plain", "dpo_sft"])
def test_of_a_finished_run_nothing_is_to_be_done(asked, variant):
    assert asked(variant) == ["nothing is left to do"]


def test_a_changed_knob_is_named_and_what_follows_from_it(asked):
    lines = asked("plain", "annotate.samples=3")
    assert lines[:3] == [
        "a knob differs from those that plain/run was last run with:",
        "  annotate.samples was 4 and is 3",
        "  (to go on under the run's own: ste run plain/run)",
    ]
    assert lines[3] == "done: intake, seed model, label, select, pair, evaluate 0"
    first = lines[4]
    assert (
        first.startswith("annotate 1: ")
        and "prompts are judged again, and the training set of " in first
    )
    assert "annotate.samples was 4 and is 3" in first
    assert any(
        re.match(r"sft 1: the judge of \d+ steps is trained again, since ", line) for line in lines
    )
    assert any(line.startswith("evaluate 2: ") for line in lines)
    assert not any(line.startswith(("pair", "select", "evaluate 0")) for line in lines)


def test_many_changed_knobs_are_counted(asked):
    changed = ["epochs=3", "beta1=0.8", "beta2=0.9", "weight_decay=0.2", "warmup_steps=1"]
    lines = asked("plain", *(f"finetune.{each}" for each in changed))
    started = (
        r"sft 1: the judge of \d+ steps is trained again, since finetune.epochs was 2.0 and is 3"
    )
    (trained,) = [line for line in lines if line.startswith("sft 1: ")]
    assert re.match(started, trained) and "and 2 more" in trained


def test_a_run_that_is_not_there_is_not_begun(asked, tmp_path):
    assert asked("plain", "--dir", str(tmp_path / "new"))[0].startswith("the whole run")
    assert not (tmp_path / "new").exists()


def test_a_plan_for_other_devices_says_so_and_a_start_is_refused(asked, tmp_path, capsys):
    new = ["--dir", str(tmp_path / "new"), "decoding.mesh.tensor=16"]
    assert asked("plain") == ["nothing is left to do"]
    assert main([*running("plain"), *new, "--dry-run"]) == 0
    found = capsys.readouterr()
    assert found.out.startswith("the whole run")
    assert "=16 is for a multiple of 16 devices; here are 8 (cpu): the plan is for " in found.err
    assert main([*running("plain"), *new]) == 2
    assert "is for a multiple of 16 devices; here are 8" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_knob_of_annotated_prompts_is_named_for_them_alone(asked):
    lines = asked("dpo_sft", "seed=5", "annotate.orders=both")
    prompts = {line.split(": ")[0]: line for line in lines if line.startswith("prompt set of ")}
    assert {"prompt set of annotate 1", "prompt set of evaluate 1"} <= prompts.keys()
    naming = [title for title, line in prompts.items() if "annotate.orders was" in line]
    assert naming == ["prompt set of annotate 1"]


def test_another_generator_is_named_although_the_mark_holds_no_knobs(asked):
    lines = asked("endpoints", "annotate.generator={}", "pair.generator=big")
    (paired,) = [line for line in lines if line.startswith("pair: ")]
    assert 'since pair.generator was "other" and is "big"' in paired
    (judged,) = [line for line in lines if line.startswith("annotate 1: ")]
    assert 'annotate.generator.1 was "big" and is empty' in judged
    assert "and the training set of iteration 1 goes, since" in judged


@pytest.mark.parametrize("lost", ["manifest.json", "both manifests"])
def test_of_a_run_whose_manifest_is_torn_lines_come_and_it_stays_torn(asked, tmp_path, lost):
    root = archive.unpack("plain", tmp_path) / "run"
    for path in root.glob("manifest.json*" if lost == "both manifests" else lost):
        path.write_bytes(path.read_bytes()[:9])
    assert asked("plain") == ["nothing is left to do"]
    assert any(line.startswith("annotate 1: ") for line in asked("plain", "annotate.samples=3"))


def test_of_a_run_that_has_lost_a_mark_a_line_says_so(asked, tmp_path):
    here = archive.unpack("plain", tmp_path) / "run" / "iterations" / "1"
    for path in here.glob("annotate*.json*"):
        path.unlink()
    line = asked("plain")[1]
    assert line.startswith("annotate 1: ")
    assert line.endswith(", since its mark is lost, and with it what it was made under")


def test_a_dry_run_and_a_command_that_works_on_the_run_exclude_each_other(
    asked, tmp_path, monkeypatch, capsys
):
    root = epath.Path(archive.unpack("plain", tmp_path) / "run")
    with files.held_for_reading(root):  # another dry run
        assert asked("plain") == ["nothing is left to do"]
    before = stamps(tmp_path)
    with files.held_at(root):
        assert main([*running("plain"), "--dry-run"]) != 0
    assert "another `ste` command is at work on" in capsys.readouterr().err
    assert stamps(tmp_path) == before

    def working(context: Context, iterations: int) -> None:
        handle = os.open(root, os.O_RDONLY)
        with pytest.raises(RequestError, match="another `ste` command is at work"):
            files.hold(handle, Path(root))  # as a command that works on the run does
        os.close(handle)
        context.changes.first("the run", "is held")

    monkeypatch.setattr("ste_jax.pipeline.recipe._recipe", working)
    assert asked("plain") == ["the run: is held"]


def test_of_a_judge_that_is_taken_over_the_evaluation_is_taken_over_too(asked):
    lines = asked("dpo_annotate", "finetune.stages=[sft]")
    (line,) = [line for line in lines if line.startswith("sft 1: the judge kept in ")]
    assert "is used again, since" in line
    assert not any(line.startswith("evaluate 1: ") for line in lines)


def test_what_is_damaged_and_goes_anyway_is_not_counted(asked, tmp_path):
    here = archive.unpack("plain", tmp_path) / "run" / "iterations" / "1"
    (here / "finetune.json").write_text("{")
    lines = asked("plain", "finetune.epochs=3")
    assert any(line.startswith("sft 1: the judge is trained again, since ") for line in lines)
    table = RunDir(epath.Path(tmp_path / "plain" / "run")).iteration(1).training
    assert " rows is chosen" in counted("it", table)
    for path in here.glob("training/*.parquet"):
        path.write_bytes(path.read_bytes()[:-9])
    assert counted("it", table) == "it is chosen"


def test_a_judge_whose_checkpoint_is_gone_is_made_again_and_not_for_the_first_time(asked, tmp_path):
    assert asked("plain") == ["nothing is left to do"]
    run = RunDir(epath.Path(tmp_path / "plain/run"))
    files.remove(run.iteration(1).checkpoint)
    lines = asked("plain")
    assert lines[:4] == [
        "done: intake, seed model, label, select, pair, evaluate 0, annotate 1, curate 1",
        "sft 1: the judge of 2 steps is trained again, since its checkpoint is gone",
        "evaluate 1: the judge is measured again, of what is there and fits",
        "iteration 2: what is there and fits stays, and the rest is made",
    ]
