"""SFT and then DPO through `ste run`: what is learnt from, what comes of it, and after a kill."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from ste_jax.checkpoints import read_card
from ste_jax.reporting.tables import finetuning_table, summary
from ste_jax.rundir import RunDir, read_metrics
from tests import running
from tests.comparing import assert_identical

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


def test_another_beta_trains_the_last_stage_alone(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    config, expected = undisturbed
    run = tmp_path / "run"
    shutil.copytree(expected, run)
    kept = run / "iterations/1/stages/sft/checkpoint/ste_checkpoint.json"
    written = kept.stat().st_mtime_ns
    words = ["run", str(config), "finetune.dpo.beta=0.5", "--dir", str(run)]
    assert running.run(words) == 0
    assert kept.stat().st_mtime_ns == written
    changed = json.loads((run / "iterations/1/finetune.json").read_text())
    before = json.loads((expected / "iterations/1/finetune.json").read_text())
    assert changed["steps"][-1]["margin"] != before["steps"][-1]["margin"]
