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

from ste_jax.checkpoints.card import read_card
from ste_jax.commands.model_card import model_card
from ste_jax.model_io.sources import Source
from ste_jax.pipeline.phases.dpo import DpoDir
from ste_jax.reporting.funnel import check_sums, funnel
from ste_jax.reporting.tables import finetuning_table, iteration_table, summary
from ste_jax.run.layout import RunDir
from ste_jax.run.metrics_log import read_metrics
from tests import running
from tests.comparing import assert_identical, assert_same_files
from tests.multihost.test_two_processes import run_two, start_two
from tests.reports import REPORTS

SMALL: dict[str, Any] = {
    "iterations": 1,
    "pair__min_answer_chars": 2,
    "select__train": 400,
    "select__heldout": 60,
    "judge__force_verdict": False,
    "finetune__stages": ["sft", "dpo"],
    "finetune__batch_rows": 2,
    "finetune__dpo": {
        "batch_rows": 2,
        "accumulate": 1,
        "learning_rate": 2e-2,
        "final_learning_rate_fraction": 0.1,
        "schedule_steps": 0,
        "validate_every": 8,
        "epochs": 20.0,
        "max_steps": 40,
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
    counts = json.loads(DpoDir(here).preference_counts.read_text())
    rows = list(DpoDir(here).preferences.rows())
    judgments = {row.id: row for row in DpoDir(here).judgments.rows()}
    letters, negatives = Counter(row.label for row in rows), Counter(row.negative for row in rows)
    assert letters == counts["kept"]
    assert negatives == counts["negatives"]
    assert letters["A"] == letters["B"] >= 5
    assert min(negatives["incorrect"], negatives["unparsed"]) >= 2
    for row in rows:
        chosen, rejected = judgments[row.judgment_id], judgments[row.rejected_judgment_id or ""]
        assert chosen.verdict == row.label != rejected.verdict
        assert row.rejected_ids == rejected.token_ids
        if chosen.finish_reason != "length":
            assert row.completion_ids == chosen.token_ids
        else:  # it ends with its verdict, and not where it was cut off
            assert row.completion_ids == chosen.token_ids[: len(row.completion_ids)]
            assert chosen.text.startswith(row.completion) and "]]" in row.completion


def test_the_judge_that_sft_gave_is_asked_anew_for_every_sample(
    undisturbed: tuple[Path, Path],
) -> None:
    run = RunDir(epath.Path(undisturbed[1]))
    here = run.iteration(1)
    seed, sft = (read_card(p.checkpoint) for p in (run.iteration(0), here.phase("sft")))
    first, again = list(here.judgments.rows()), list(DpoDir(here).judgments.rows())
    assert {row.judge for row in first} == {seed["provenance"]["fingerprint"]}
    assert {row.judge for row in again} == {sft["provenance"]["fingerprint"]}
    drawn = Counter(row.prompt_id for row in again)
    assert drawn == {row.id: 4 for row in here.prompts.rows()}  # N, whatever came first
    assert len(first) < len(again)
    counts = funnel(run, REPORTS)["iterations"][0]
    assert check_sums(funnel(run, REPORTS), REPORTS) == []
    assert counts["phases"]["dpo"]["sft"] == len(again)
    paired = len({row.prompt_id for row in DpoDir(here).preferences.rows()})
    assert counts["phases"]["dpo"]["paired"] == paired
    assert counts["prompts"] == paired + sum(counts["phases"]["dpo"]["dropped"].values())
    assert iteration_table(run, REPORTS)[1]["samples_drawn"] == len(first) + len(again)


def test_each_stage_is_measured_before_its_first_step(undisturbed: tuple[Path, Path]) -> None:
    run = RunDir(epath.Path(undisturbed[1]))
    here = run.iteration(1)
    sft, dpo = (json.loads(p.loss_curve.read_text()) for p in (here.phase("sft"), here))
    assert [curve["validations"][0]["step"] for curve in (sft, dpo)] == [0, 0]
    # The seed is measured for it and that is kept; what SFT gave was measured when it was chosen.
    seed = {**sft["validations"][0]}
    assert seed.pop("step") == 0
    assert json.loads(run.iteration(0).validation.read_text())["measured"] == seed
    assert dpo["validations"][0]["accuracy"] == sft["best_accuracy"]
    assert not here.phase("sft").validation.exists()


def test_each_stage_has_a_judge_that_is_measured(undisturbed: tuple[Path, Path]) -> None:
    run = RunDir(epath.Path(undisturbed[1]))
    here, sft = run.iteration(1), run.iteration(1).phase("sft")
    cards = [read_card(place.checkpoint)["provenance"] for place in (run.iteration(0), sft, here)]
    assert [card.get("stage") for card in cards] == [None, "sft", "dpo"]
    assert [card["parent"] for card in cards[1:]] == [card["fingerprint"] for card in cards[:-1]]
    for place, said in ((sft, "the right verdict was learnt"), (here, "by DPO")):
        source = Source(kind="checkpoint", path=place.checkpoint, name="judge")
        assert said in model_card(
            "judge", source, read_card(place.checkpoint)["provenance"], REPORTS
        )
    table = finetuning_table(run, REPORTS)
    assert [row["stage"] for row in table] == ["sft", "dpo"]
    assert all(row["agreement_with_constructed_labels"] is not None for row in table)
    assert all(row["validation_accuracy"] is not None for row in table)
    assert table[1]["incorrect"] + table[1]["unparsed"] == table[1]["examples"]
    assert "By phase of fine-tuning" in summary(run, REPORTS)
    curve = json.loads(here.loss_curve.read_text())
    assert curve["steps"][0]["dpo_loss"] == pytest.approx(0.6931, abs=1e-3)  # its own reference
    margins = [step["margin"] for step in curve["steps"]]
    assert sum(margins[-10:]) / 10 > 0.1
    assert sum(step["preference_accuracy"] for step in curve["steps"][-10:]) / 10 > 0.6
    steps = [e for e in read_metrics(run.root) if e["event"] == "train_step"]
    assert Counter(e["stage"] for e in steps)["dpo"] == len(curve["steps"])


def test_killed_in_the_judgments_in_the_reference_and_in_a_step_of_dpo_it_comes_to_the_same(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    config, expected = undisturbed
    run = tmp_path / "run"
    words = ["run", str(config), "--dir", str(run)]
    assert running.run(words, place="write:1/dpo_judgments/:2") == -signal.SIGKILL
    (judged,) = run.glob("iterations/1/dpo_judgments/0*.parquet")
    judged_at = judged.stat().st_mtime_ns
    assert running.run(words, place="write:1/reference/:2") == -signal.SIGKILL
    assert judged.stat().st_mtime_ns == judged_at
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
    words = ["run", str(config), "--yes", "--dir", str(run)]

    def steps() -> Counter[str]:
        events = read_metrics(epath.Path(run))
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


def test_it_may_learn_from_the_judgments_that_sft_chose_from(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    config, expected = undisturbed
    run = tmp_path / "run"
    shutil.copytree(expected, run)
    here = RunDir(epath.Path(run)).iteration(1)
    sft = run / "iterations/1/stages/sft/finetune.json"
    kept = [sft, *run.glob("iterations/1/dpo_judgments/*.parquet")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    words = ["run", str(config), "--yes", "--dir", str(run)]
    annotate = ["finetune.dpo.judgments=annotate", "annotate.policy=all"]
    # More judgments, but the same chosen: SFT is not trained again. DPO has others to learn from.
    assert running.run([*words, *annotate]) == 0
    judgments = {row.id: row for row in here.judgments.rows()}
    pairs = list(DpoDir(here).preferences.rows())
    assert pairs and all(row.judgment_id in judgments for row in pairs)
    assert len(judgments) == 4 * len(list(here.prompts.rows()))
    assert funnel(RunDir(epath.Path(run)), REPORTS)["iterations"][0]["phases"]["dpo"]["sft"] == 0
    # And back: what the judge that SFT gave has said is there still.
    assert running.run(words) == 0
    assert before == {path: path.stat().st_mtime_ns for path in kept}
    assert_identical(expected, run)


@pytest.mark.slow
def test_more_is_drawn_where_no_judgment_had_failed(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    config, expected = undisturbed
    runs = [tmp_path / name for name in ("killed", "whole")]
    for run in runs:
        shutil.copytree(expected, run)
    words = [["run", str(config), "--yes", "--dir", str(run)] for run in runs]
    more = ["finetune.dpo.more_samples=12", "finetune.dpo.more_temperature=2"]
    more += ["finetune.dpo.negatives=[incorrect]"]
    killed = running.run([*words[0], *more], place="write:1/more_judgments/:2")
    assert killed == -signal.SIGKILL
    assert not DpoDir(RunDir(epath.Path(runs[0])).iteration(1)).more_judgments.complete()
    assert running.run(["finetune", str(runs[0]), "--iteration", "1"]) == 0
    assert [running.run([*each, *more]) for each in words] == [0, 0]
    assert_identical(*runs)

    here = RunDir(epath.Path(runs[0])).iteration(1)
    labels = {prompt.id: prompt.label for prompt in here.prompts.rows()}
    failed, right = set(), set()
    for row in DpoDir(here).judgments.rows():
        if row.verdict is not None:
            (right if row.verdict == labels[row.prompt_id] else failed).add(row.prompt_id)
    drawn = list(DpoDir(here).more_judgments.rows())
    assert {row.prompt_id for row in drawn} == right - failed
    first = {row.sample for row in DpoDir(here).judgments.rows()}
    assert min(row.sample for row in drawn) == max(first) + 1
    pairs = list(DpoDir(here).preferences.rows())
    hotter = {row.id for row in drawn if row.verdict not in (None, labels[row.prompt_id])}
    count = sum(pair.rejected_judgment_id in hotter for pair in pairs)
    assert count > 0
    assert finetuning_table(RunDir(epath.Path(runs[0])), REPORTS)[1]["drawn_hotter"] == count

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
    # Sums over two processes are rounded otherwise, and at the tiny run's rate that grows.
    for number, (step, want) in enumerate(zip(curves[1]["steps"], curves[0]["steps"], strict=True)):
        assert step["loss"] == pytest.approx(want["loss"], rel=1e-3 if number < 10 else 1e-2)
