"""SFT and then DPO through `ste run`: what is learnt from, what comes of it, and after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from ste_jax.checkpoints import read_card
from ste_jax.exporting import model_card
from ste_jax.models.sources import Source
from ste_jax.reporting.tables import finetuning_table, summary
from ste_jax.rundir import RunDir, read_metrics
from tests import running
from tests.comparing import assert_identical, assert_same_files
from tests.multihost.test_two_processes import run_two, start_two

SMALL: dict[str, Any] = {
    "iterations": 1,
    "pair__min_answer_chars": 2,
    "select__train": 400,
    "select__heldout": 60,
    "annotate__policy": "all",
    "judge__force_verdict": False,
    "finetune__stages": ["sft", "dpo"],
    "finetune__batch_rows": 2,
    "finetune__dpo": {
        "batch_rows": 2,
        "learning_rate": 2e-2,
        "validate_every": 4,
        "epochs": 4.0,
        "max_steps": 16,
    },
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config, run) of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("dpo")
    config = running.write_config(root, **SMALL)
    run = root / "undisturbed"
    assert running.run(["run", str(config), "--dir", str(run)]) == 0
    return config, run


def test_pairs_are_counted_by_letter_and_by_kind_of_failure(
    undisturbed: tuple[Path, Path],
) -> None:
    here = RunDir(epath.Path(undisturbed[1])).iteration(1)
    counts = json.loads(here.preferring.read_text())
    rows = list(here.preferences.rows())
    judgments = {row.id: row for row in here.judgments.rows()}
    letters, negatives = Counter(row.label for row in rows), Counter(row.negative for row in rows)
    assert letters == counts["kept"]
    assert negatives == counts["negatives"]
    assert letters["A"] == letters["B"] >= 5
    assert min(negatives["incorrect"], negatives["unparsed"]) >= 2
    for row in rows:
        chosen, rejected = judgments[row.judgment_id], judgments[row.rejected_judgment_id or ""]
        assert chosen.verdict == row.label != rejected.verdict
        assert (row.completion_ids, row.rejected_ids) == (chosen.token_ids, rejected.token_ids)


def test_each_stage_has_a_judge_that_is_measured(undisturbed: tuple[Path, Path]) -> None:
    run = RunDir(epath.Path(undisturbed[1]))
    here, sft = run.iteration(1), run.iteration(1).stage("sft")
    cards = [read_card(place.checkpoint)["provenance"] for place in (run.iteration(0), sft, here)]
    assert [card.get("stage") for card in cards] == [None, "sft", "dpo"]
    assert [card["parent"] for card in cards[1:]] == [card["fingerprint"] for card in cards[:-1]]
    for place, said in ((sft, "the right verdict was learnt"), (here, "by DPO")):
        source = Source(kind="checkpoint", path=place.checkpoint, name="judge")
        assert said in model_card("judge", source, read_card(place.checkpoint)["provenance"])
    table = finetuning_table(run)
    assert [row["stage"] for row in table] == ["sft", "dpo"]
    assert all(row["agreement_with_constructed_labels"] is not None for row in table)
    assert all(row["validation_accuracy"] is not None for row in table)
    assert table[1]["incorrect"] + table[1]["unparsed"] == table[1]["examples"]
    assert "By stage of fine-tuning" in summary(run)
    curve = json.loads(here.loss_curve.read_text())
    assert curve["steps"][0]["dpo_loss"] == pytest.approx(0.6931, abs=1e-3)  # its own reference
    margins = [step["margin"] for step in curve["steps"]]
    assert sum(margins[-5:]) / 5 > 0.1
    assert sum(step["preference_accuracy"] for step in curve["steps"][-5:]) / 5 > 0.6
    steps = [e for e in read_metrics(run) if e["event"] == "train_step"]
    assert Counter(e["stage"] for e in steps)["dpo"] == len(curve["steps"])


def test_killed_in_the_reference_and_in_a_step_of_dpo_it_comes_to_the_same(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    config, expected = undisturbed
    run = tmp_path / "run"
    words = ["run", str(config), "--dir", str(run)]
    assert running.run(words, place="write:1/reference/:2") == -signal.SIGKILL
    (scored,) = run.glob("iterations/1/reference/0*.parquet")
    before = scored.stat().st_mtime_ns
    assert (run / "iterations/1/stages/sft/finetune.json").exists()
    assert running.run(words, place="step:6") == -signal.SIGKILL  # SFT is not trained again
    assert (run / "iterations/1/train_state").exists()
    assert not (run / "iterations/1/finetune.json").exists()
    assert running.run(words) == 0
    assert scored.stat().st_mtime_ns == before
    assert_identical(expected, run)


def test_what_was_made_stays_when_a_later_stage_changes_or_goes(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    config, expected = undisturbed
    run = tmp_path / "run"
    shutil.copytree(expected, run)
    here, sft = run / "iterations/1", run / "iterations/1/stages/sft"
    scored = {path: path.stat().st_mtime_ns for path in here.glob("reference/*.parquet")}
    words = ["run", str(config), "--dir", str(run)]

    def steps() -> Counter[str]:
        events = read_metrics(RunDir(epath.Path(run)))
        return Counter(e["stage"] for e in events if e["event"] == "train_step")

    before = steps()
    assert running.run([*words, "finetune.dpo.beta=0.5"]) == 0
    changed, first = (
        json.loads((p / "finetune.json").read_text()) for p in (here, expected / "iterations/1")
    )
    assert changed["steps"][-1]["margin"] != first["steps"][-1]["margin"]
    assert steps()["sft"] == before["sft"]
    assert scored == {path: path.stat().st_mtime_ns for path in scored}  # not scored again

    # Without DPO, what SFT has made is the iteration's; with it, it is a stage's again.
    card = (sft / "checkpoint/ste_checkpoint.json").read_bytes()
    assert running.run([*words, "finetune.stages=[sft]"]) == 0
    assert (here / "checkpoint/ste_checkpoint.json").read_bytes() == card
    assert not sft.exists()
    assert running.run(words) == 0
    assert steps()["sft"] == before["sft"]
    assert_identical(expected, run)


@pytest.mark.slow
def test_more_is_drawn_where_no_judgment_had_failed(
    undisturbed: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, expected = undisturbed
    runs = [tmp_path / name for name in ("killed", "whole")]
    for run in runs:
        shutil.copytree(expected, run)
    words = [["run", str(config), "--dir", str(run)] for run in runs]
    more = ["finetune.dpo.more_samples=12", "finetune.dpo.more_temperature=2"]
    more += ["finetune.dpo.negatives=[incorrect]"]
    killed = running.run([*words[0], *more], place="write:1/more_judgments/:2")
    assert killed == -signal.SIGKILL
    assert running.run(["finetune", str(runs[0]), "--iteration", "1"]) == 2
    assert "more_judgments is not there yet" in capsys.readouterr().out
    assert [running.run([*each, *more]) for each in words] == [0, 0]
    assert_identical(*runs)

    here = RunDir(epath.Path(runs[0])).iteration(1)
    labels = {prompt.id: prompt.label for prompt in here.prompts.rows()}
    failed, right = set(), set()
    for row in here.judgments.rows():
        if row.verdict is not None:
            (right if row.verdict == labels[row.prompt_id] else failed).add(row.prompt_id)
    drawn = list(here.more_judgments.rows())
    assert {row.prompt_id for row in drawn} == right - failed
    first = {row.sample for row in here.judgments.rows()}
    assert min(row.sample for row in drawn) == max(first) + 1
    pairs = list(here.preferences.rows())
    hotter = {row.id for row in drawn if row.verdict not in (None, labels[row.prompt_id])}
    count = sum(pair.rejected_judgment_id in hotter for pair in pairs)
    assert count > 0
    assert finetuning_table(RunDir(epath.Path(runs[0])))[1]["drawn_hotter"] == count

    assert running.run(words[0]) == 0  # without it, all is as it was
    assert_identical(expected, runs[0])


def test_weights_that_are_handed_over_on_disk_are_measured_alike(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    config, expected = undisturbed
    run = tmp_path / "run"
    shutil.copytree(expected, run)
    shutil.rmtree(run / "iterations/1/stages")
    words = ["run", str(config), "--dir", str(run), "finetune.handover=restore"]
    assert running.run(words) == 0
    assert_identical(expected, run)
    assert not list(run.glob("*partial*"))


@pytest.mark.slow
def test_two_processes_come_to_the_same_also_after_a_stop(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    config, one = undisturbed
    run = tmp_path / "run"
    both = start_two(config, run)
    while not (run / "iterations/1/reference.json").exists():
        assert both[1].poll() is None
        time.sleep(0.01)
    both[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [75, 75], outputs
    assert run_two(config, run) == [0, 0]
    for name in ("preferences", "judgments", "training"):
        assert_same_files(one, run, f"iterations/1/{name}/*.parquet")
    curves = [json.loads((p / "iterations/1/finetune.json").read_text()) for p in (one, run)]
    for step, want in zip(curves[1]["steps"], curves[0]["steps"], strict=True):
        assert step["loss"] == pytest.approx(want["loss"], rel=1e-3)
