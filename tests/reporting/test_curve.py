"""The recipe's curve holds what the files of the run say of each iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ste_jax.reporting.curve import curve, sets_of
from ste_jax.run.layout import RunDir
from ste_jax.system import files


def test_a_point_per_judge(whole_run: RunDir) -> None:
    found = curve(whole_run)
    assert list(found) == [0, 1, 2]
    for index, figures in found.items():
        evaluation = files.read_json(whole_run.iteration(index).evaluation)
        for key in ("accuracy", "consistent_accuracy", "majority_accuracy", "parsed_unforced"):
            assert figures[f"{key}/held-out"] == evaluation[key]
            ends = [figures[f"{key}/held-out_{end}"] for end in ("low", "high")]
            assert ends == evaluation[f"{key}_ci95"]
        assert sets_of(figures) == ["held-out"]
    assert "annotate/judgments_kept" not in found[0]


def test_the_work_of_an_iteration(whole_run: RunDir) -> None:
    first, iteration = curve(whole_run)[1], whole_run.iteration(1)
    samples = sum(1 for _ in iteration.judgments.rows())
    prompts = sum(1 for _ in iteration.prompts.rows())
    assert first["annotate/samples_per_prompt"] == samples / prompts
    assert first["annotate/judgments_kept"] == sum(1 for _ in iteration.training.rows())
    assert first["sampling/tokens_per_second"] == pytest.approx((18000 + 15000) / (61 + 50))


def test_labelled_sets_and_slots(own_run: RunDir, fake_run: Callable[..., Any]) -> None:
    place = own_run.iteration(2).evaluation
    measured = files.read_json(place)
    sets = {"mine": {"accuracy": 0.5, "accuracy_ci95": [0.25, 0.75], "parsed_unforced": None}}
    files.write_json(place, {**measured, "sets": sets})
    with own_run.metrics.open("a") as file:
        for busy in (60, 90):
            file.write(
                '{"event": "work", "stage": "evaluate", "iteration": 2, "new_tokens": 1, '
                f'"seconds": 1, "slot_steps": 100, "busy_slot_steps": {busy}}}\n'
            )
    found = curve(own_run)[2]
    assert sets_of(found) == ["held-out", "mine"]
    assert (found["accuracy/mine"], found["accuracy/mine_low"]) == (0.5, 0.25)
    assert "parsed_unforced/mine" not in found
    assert found["sampling/slots_in_use"] == 0.75


def test_a_run_that_has_measured_nothing(fake_run: Callable[..., Any]) -> None:
    assert curve(fake_run().begin().run) == {}


def test_a_damaged_file_has_no_figures(own_run: RunDir) -> None:
    whole = curve(own_run)
    own_run.iteration(2).evaluation.write_text("{")
    found = curve(own_run)
    assert found[1] == whole[1] and sets_of(found[2]) == []
