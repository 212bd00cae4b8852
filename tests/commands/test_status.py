"""Is it told from a run's files where it stands, whatever else goes on there?"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from ste_jax.cli import main
from ste_jax.commands.status import as_text, status
from ste_jax.config.identity import Identity
from ste_jax.run import marks
from ste_jax.run.layout import RunDir
from ste_jax.system import files
from tests.golden import archive
from tests.pipeline.test_dry_run import stamps

STEPS = ["intake", "seed model", "label", "select", "pair", "evaluate 0"]
STEPS += [f"{name} {k}" for k in (1, 2) for name in ("annotate", "sft", "evaluate")]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return archive.unpack("plain", tmp_path) / "run"


def by_step(run: Path) -> dict[str, dict]:
    return {step["step"]: step for step in status(str(run))["steps"]}


def test_of_a_finished_run_all_is_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stamps(run)
    found = status(str(run))
    assert [step["step"] for step in found["steps"]] == STEPS
    assert all(step["done"] for step in found["steps"]) and found["next"] is None
    assert found["at_work"] is False
    assert [row["iteration"] for row in found["accuracy"]] == [0, 1, 2]
    run_dir = RunDir(epath.Path(run))
    rows = {step["step"]: step["rows"] for step in found["steps"]}
    assert rows["label"] == run_dir.pool.count()
    assert rows["annotate 1"] == run_dir.iteration(1).prompts.count()
    assert main(["status", str(run)]) == 0
    text = capsys.readouterr().out
    assert f"{len(STEPS)} of {len(STEPS)} steps are done; no command is at work on it" in text
    assert re.search(r"label +done +650 rows", text) and "next: nothing" in text
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert stamps(run) == before


def test_what_is_not_done_is_counted_and_the_next_step_named(run: Path) -> None:
    here = RunDir(epath.Path(run)).iteration(2)
    files.remove(here.judgments.path(0))
    lines = Path(here.root) / "annotate.journal" / "00000.abcd.lines"
    lines.parent.mkdir()
    lines.write_bytes(b"one\ntwo\nthr")  # the third is torn
    step = by_step(run)["annotate 2"]
    whole = here.prompts.count()
    lost = len(here.prompts.read(0))
    assert step == {
        "step": "annotate 2", "done": False, "rows": whole - lost + 2, "of": whole, "unit": "rows",
        "made_before": False,
    }  # fmt: skip
    found = status(str(run))
    assert found["next"] == "annotate 2"
    assert f"partly done  {whole - lost + 2} of {whole} rows" in as_text(found)


def test_what_lies_behind_a_step_that_is_made_again_is_not_done(run: Path) -> None:
    """As `ste run RUN seed=7 --yes` leaves a finished run when it is killed in label."""
    files.remove(RunDir(epath.Path(run)).labels.directory)
    found = status(str(run))
    steps = {step["step"]: step for step in found["steps"]}
    assert [name for name, step in steps.items() if step["done"]] == ["intake", "seed model"]
    assert not steps["label"]["made_before"] and found["next"] == "label"
    assert all(steps[name]["made_before"] for name in STEPS[3:])
    assert all(row["made_before"] for row in found["accuracy"]) and len(found["accuracy"]) == 3
    text = as_text(found)
    assert f"2 of {len(STEPS)} steps are done" in text
    assert re.search(r"evaluate 1 +made before; may be made again +\d", text)
    assert re.search(r"(?m)^1 +[\d.]+ +made before$", text)
    assert "what is made again, and why: ste run" in text and "--dry-run" in text


@pytest.mark.parametrize(
    ("knob", "value", "of", "again"),
    [
        ("seed", 0, "instructions/label", STEPS[2:]),
        ("annotate.samples", 4, "iterations/1/annotate", STEPS[6:]),
        ("evaluate.votes", 3, "iterations/0/evaluation/evaluate", ["evaluate 0"]),
    ],
)
def test_a_knob_that_is_another_now_is_seen_before_anything_is_touched(
    run: Path, knob: str, value: int, of: str, again: list[str]
) -> None:
    mark = epath.Path(run) / f"{of}.mark.json"
    marks.mark(mark, Identity(marks.marked(mark), {"knobs": {knob: value}}))
    assert all(step["done"] for step in by_step(run).values())
    marks.mark(mark, Identity(marks.marked(mark), {"knobs": {knob: value + 7}}))
    assert [name for name, step in by_step(run).items() if step["made_before"]] == again


def test_a_judge_that_is_another_now_is_seen_before_it_is_asked(run: Path) -> None:
    root = RunDir(epath.Path(run))
    card = Path(root.iteration(1).checkpoint) / "ste_checkpoint.json"
    values = json.loads(card.read_text())
    judge = values["provenance"]["fingerprint"]
    for of in ("2/annotate", "1/evaluation/evaluate"):
        mark = root.root / "iterations" / f"{of}.mark.json"
        marks.mark(mark, Identity(marks.marked(mark), {"model": f"{judge}/float32"}))
    assert all(step["done"] for step in by_step(run).values())
    values["provenance"]["fingerprint"] = "another"
    card.write_text(json.dumps(values))
    again = [name for name, step in by_step(run).items() if step["made_before"]]
    assert again == ["evaluate 1", "annotate 2", "sft 2", "evaluate 2"]


@pytest.mark.parametrize("lost", ["instructions/choose", "iterations/1/curate"])
def test_a_step_that_lost_its_mark_is_not_done(run: Path, lost: str) -> None:
    marks.forget(epath.Path(run) / f"{lost}.mark.json")
    first = "select" if "choose" in lost else "sft 1"
    again = [name for name, step in by_step(run).items() if step["made_before"]]
    assert again == STEPS[STEPS.index(first) :]


def test_a_table_that_lacks_rows_is_not_whole(run: Path) -> None:
    here = RunDir(epath.Path(run))
    rows, missing = here.pairs.read(0), 3
    assert len(rows) > missing
    here.pairs.write(0, rows[missing:])
    steps = by_step(run)
    whole = here.selected.count()
    pair = steps["pair"]
    assert (pair["done"], pair["rows"], pair["of"]) == (False, whole - missing, whole)
    assert steps["select"]["done"] and steps["annotate 1"]["made_before"]


def test_steps_of_a_training_in_hand_are_counted(run: Path) -> None:
    here = Path(RunDir(epath.Path(run)).iteration(2).root)
    (here / "finetune.json").unlink()
    shutil.rmtree(here / "train_state", ignore_errors=True)
    (here / "train_state/abc/12").mkdir(parents=True)
    step = by_step(run)["sft 2"]
    assert (step["done"], step["rows"], step["of"]) == (False, 12, None)


@pytest.mark.parametrize("damage", ["manifest", "config", "table", "evaluation", "metrics"])
def test_a_damaged_run_is_told_of_too(run: Path, damage: str) -> None:
    damaged = {
        "manifest": run.glob("manifest.json*"),
        "config": run.glob("config.yaml"),
        "table": run.glob("iterations/1/judgments/*.parquet"),
        "evaluation": run.glob("iterations/1/evaluation.json"),
        "metrics": run.glob("metrics.jsonl"),
    }
    for path in damaged[damage]:
        path.write_bytes(path.read_bytes()[:20] + b"\xff{")
    before = stamps(run)
    found = status(str(run))
    assert as_text(found) and [step["step"] for step in found["steps"]] == STEPS
    assert stamps(run) == before


def test_it_works_beside_a_command_and_says_so(run: Path) -> None:
    with RunDir(epath.Path(run)).locked():
        code = "from ste_jax.commands.status import *; print(as_text(status({!r})))"
        code += "; import sys; assert 'jax' not in sys.modules"
        words = [sys.executable, "-c", code.format(str(run))]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "a command is at work on it" in said


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
