"""The tables hold the run's numbers, each once, and read well as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from ste_jax.reporting.tables import (
    cells,
    iteration_table,
    markdown,
    number,
    render,
    stage_table,
    summary,
)
from ste_jax.run.layout import RunDir
from ste_jax.system import files
from tests.reports import REPORTS


def test_a_row_per_judge(whole_run: RunDir) -> None:
    seed, first, second = iteration_table(whole_run, REPORTS)
    assert [row["iteration"] for row in (seed, first, second)] == [0, 1, 2]
    assert seed["pairs"] is None and seed["kept_A"] is None and seed["tokens_trained"] is None
    evaluation = files.read_json(whole_run.iteration(2).evaluation)
    assert second["agreement_with_constructed_labels"] == evaluation["accuracy"]
    assert second["held_out_pairs"] == evaluation["n"] > 0
    assert second["agreement_with_constructed_labels_ci95"] == evaluation["accuracy_ci95"]
    assert second["consistent_agreement"] == evaluation["consistent_accuracy"]
    assert second["majority_agreement_ci95"] == evaluation["majority_accuracy_ci95"]
    assert second["verdict_without_force"] == evaluation["parsed_unforced"]
    judgments = sum(1 for _ in whole_run.iteration(1).judgments.rows())
    assert (first["instructions"], first["samples_drawn"]) == (50, judgments)
    assert first["pairs"] * 2 == sum(1 for _ in whole_run.iteration(1).prompts.rows())
    assert first["validation_accuracy"] == 0.5 + 24 / 100


def test_the_work_of_an_iteration(whole_run: RunDir) -> None:
    """Annotate and evaluate, and 24 steps of which the last was done twice."""
    first = iteration_table(whole_run, REPORTS)[1]
    assert first["tokens_drawn"] == 18000 + 15000
    assert first["drawn_per_second"] == pytest.approx(33000 / 111)
    assert first["tokens_trained"] == 24 * 900
    assert first["flops"] == pytest.approx(1.4e13 + 1.1e13 + 24 * 5e11)
    assert first["seconds"] == 61 + 50 + 24 * 2


def test_the_work_by_stage(whole_run: RunDir) -> None:
    rows = stage_table(whole_run, REPORTS)
    assert [(row["stage"], row["iteration"]) for row in rows] == [
        ("select", 0),
        ("pair", 0),
        ("evaluate", 0),
        *((stage, k) for k in (1, 2) for stage in ("annotate", "train", "evaluate")),
        ("whole run", None),
    ]
    by_name = {(row["stage"], row["iteration"]): row for row in rows}
    pair = by_name["pair", 0]
    assert (pair["rows"], pair["prompt_tokens"], pair["seconds"]) == (81, 82000, 190.5)
    assert pair["tokens_per_second"] == pytest.approx(42000 / 190.5)
    train = by_name["train", 2]
    assert train["new_tokens"] is None and train["trained_tokens"] == 24 * 900
    for key in ("rows", "prompt_tokens", "new_tokens", "trained_tokens", "seconds", "flops"):
        parts = [row[key] for row in rows[:-1] if row[key] is not None]
        assert rows[-1][key] == pytest.approx(sum(parts))


def test_a_run_without_work_has_no_rows(fake_run: Callable[..., Any]) -> None:
    run = fake_run().begin().run
    assert iteration_table(run, REPORTS) == [] and stage_table(run, REPORTS) == []
    assert render([]) == "(nothing yet)"


def test_an_iteration_that_has_just_begun(fake_run: Callable[..., Any]) -> None:
    fake = fake_run().begin().select().make_pairs()
    fake.annotate(fake.run.iteration(1))
    (row,) = iteration_table(fake.run, REPORTS)
    assert row["samples_drawn"] > 0 and row["kept_A"] == 0
    assert row["agreement_with_constructed_labels"] is None and row["validation_accuracy"] is None
    assert "agreement with constructed labels" in render([row])


def test_narrow_tables_have_a_line_per_row() -> None:
    rows = [
        {"stage": "pair", "new_tokens": 1200, "share": 0.5, "share_ci95": [0.25, 0.75]},
        {"stage": "annotate", "new_tokens": 7, "share": None, "share_ci95": None},
    ]
    assert render(rows).splitlines() == [
        "             new",
        "stage     tokens                 share",
        "pair       1,200  0.500 [0.250, 0.750]",
        "annotate       7                     -",
    ]


def test_wide_tables_have_a_column_per_row() -> None:
    names = [f"a_long_name_of_column_{n}" for n in range(12)]
    rows = [{"iteration": k, **dict.fromkeys(names, 10_000 * k)} for k in range(2)]
    lines = render(rows).splitlines()
    assert len(lines) == 13
    assert lines[0].split() == ["iteration", "0", "1"]
    assert lines[1].split() == ["a", "long", "name", "of", "column", "0", "0", "10,000"]
    assert len({len(line) for line in lines}) == 1


def test_the_tables_of_a_run_fit_a_terminal(whole_run: RunDir) -> None:
    for rows in (
        iteration_table(whole_run, REPORTS),
        stage_table(whole_run, REPORTS),
    ):
        assert max(map(len, render(rows).splitlines())) <= 110


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "-"), ("seed", "seed"), (0, "0"), (12345, "12,345"), (0.5, "0.500"), (1.0, "1.000"),
        (-0.25, "-0.250"), (3.14159, "3.1"), (1234.5, "1,234"), (1.5e12, "1.50e+12"),
        (2_000_000_000, "2.00e+09"),
    ],
)  # fmt: skip
def test_numbers_for_people(value: Any, told: str) -> None:
    assert number(value) == told


def test_an_interval_joins_its_measure() -> None:
    header, body = cells([{"right_share": 0.5, "right_share_ci95": [0.4, 0.6]}])
    assert header == ["right share"] and body == [["0.500 [0.400, 0.600]"]]


def test_the_summary_of_a_run(whole_run: RunDir) -> None:
    text = summary(whole_run, REPORTS)
    assert "Does not add up" not in text
    for part in (
        r"read +130\n",
        r"taken in +120   6 rejected, 4 duplicates\n",
        r"made pairs +79   6 answer empty, 5 modified is same\n",
        r"iteration 2: kept for training +82   \d no correct, \d balance\n",
        r"iteration 2: trained on +81   1 too long\n",
        r"\nagreement with constructed labels +0\.\d{3} \[",
        r"\nwhole run +- ",
    ):
        assert re.search(part, text), part


def test_the_summary_tells_what_does_not_add_up(own_run: RunDir) -> None:
    own_run.selected.write(0, [])
    assert "Does not add up: fate kept = rows selected: 90 is not " in summary(own_run, REPORTS)


def test_the_summary_of_a_run_that_has_just_begun(fake_run: Callable[..., Any]) -> None:
    run = fake_run().run
    files.write_json(run.manifest, {"shards": 3, "iterations": 2})
    assert summary(run, REPORTS).count("(nothing yet)") == 3


def test_a_table_in_markdown() -> None:
    rows = [{"cell": "one", "accuracy": 0.5, "accuracy_ci95": [0.25, 0.75]}]
    assert markdown(rows).splitlines() == [
        "| cell | accuracy |",
        "| --- | --- |",
        "| one | 0.500 [0.250, 0.750] |",
    ]
