"""The command of one stage says what it did now, and what is there."""

from __future__ import annotations

from ste_jax.reporting.stage import stage_summary
from ste_jax.run.layout import RunDir
from ste_jax.run.metrics_log import read_metrics
from tests.reports import REPORTS


def test_what_was_done_now_is_what_was_logged_since(whole_run: RunDir) -> None:
    events = read_metrics(whole_run.root)
    annotated = [e for e in events if e.get("stage") == "annotate" and e["iteration"] == 2]
    said = stage_summary(whole_run, "annotate", 2, REPORTS, since=annotated[0]["time"])
    now, there = said.split("\n\n")
    assert now.startswith("annotate 2: done now\n")
    assert [line.split()[:2] for line in now.splitlines()[4:]] == [
        ["annotate", "2"],
        ["train", "2"],
        ["evaluate", "2"],
    ]
    assert there.startswith("annotate 2: what is there\nprompts ")
    assert "with a correct judgment" in there and "kept for training" in there


def test_nothing_done(whole_run: RunDir) -> None:
    said = stage_summary(whole_run, "pair", 1, REPORTS, since=1e12)
    assert said.startswith("pair: there was no work to do\n\npair: what is there\nread ")
    assert "made pairs" in said


def test_a_training_says_what_was_kept(whole_run: RunDir) -> None:
    said = stage_summary(whole_run, "finetune", 1, REPORTS, since=1e12)
    line = "sft: step 24 of 24 was kept, with a validation accuracy of 0.740; it lies in "
    assert said.splitlines()[-1] == f"{line}{whole_run.iteration(1).checkpoint}"
