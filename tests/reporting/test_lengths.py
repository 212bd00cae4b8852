"""Lengths by hand, and how far length alone would tell the better answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from ste_jax.records import make_pair
from ste_jax.reporting.html import write_report
from ste_jax.reporting.lengths import left_out, length_table
from ste_jax.reporting.tables import iteration_table, summary
from ste_jax.system import files
from tests.reports import REPORTS


def fill(fake: Any, table: Any, lengths: list[tuple[int, int]]) -> None:
    """Pairs whose answers have these lengths in the place of a table's rows."""
    pairs = [
        make_pair(row, chosen="c" * a, rejected="r" * b, modified_instruction="", source="made-up")
        for row, (a, b) in zip(fake.pool, lengths, strict=False)
    ]
    fake.write(table, ((pair.instruction_id, pair) for pair in pairs))


def test_lengths_by_hand(fake_run: Callable[..., Any]) -> None:
    fake = fake_run().begin().select().make_pairs()
    fill(fake, fake.run.pairs, [(10, 4), (20, 5), (6, 6), (3, 9)])
    (row,) = length_table(fake.run)
    expected = {
        "pairs": "constructed",
        "n": 4,
        "chosen_mean": 39 / 4,
        "chosen_median": 8.0,
        "rejected_mean": 6.0,
        "rejected_median": 5.5,
        "equally_long": 1,
        "longer_one_right": 2.5 / 4,  # two pairs, and half of the one that is a tie
        "shorter_one_right": 1.5 / 4,
    }
    assert {key: row[key] for key in expected} == expected
    low, high = row["longer_one_right_ci95"]
    assert 0 <= low < 2.5 / 4 < high <= 1


def test_labelled_sets_have_a_row_of_their_own(fake_run: Callable[..., Any]) -> None:
    fake = fake_run().begin().select().make_pairs()
    config = yaml.safe_load(fake.run.config.read_text())
    config["evaluate"]["sets"] = [{"name": "mine", "data": "my.jsonl"}]
    files.write_whole(fake.run.config, yaml.safe_dump(config).encode())
    assert [row["pairs"] for row in length_table(fake.run)] == ["constructed"]
    fill(fake, fake.run.labelled("mine"), [(1, 2), (1, 3)])
    found = {row["pairs"]: row for row in length_table(fake.run)}
    assert found["mine"]["longer_one_right"] == 0.0 and found["mine"]["shorter_one_right"] == 1.0


def test_the_report_and_the_tables_tell_them(fake_run: Callable[..., Any]) -> None:
    fake = fake_run().begin().select()
    assert length_table(fake.run) == []
    assert "Lengths of the answers" not in write_report(fake.run, REPORTS).read_text()
    fake.make_pairs()
    assert "Lengths of the answers" in write_report(fake.run, REPORTS).read_text()
    assert "longer one" in summary(fake.run, REPORTS) and "shorter" in summary(fake.run, REPORTS)


def test_what_did_not_fit_is_told_beside_the_measures(fake_run: Callable[..., Any]) -> None:
    fake = fake_run().begin().select().make_pairs()
    seed = fake.run.iteration(0)
    fake.evaluate(seed)
    assert "held_out_pairs_too_long" not in iteration_table(fake.run, REPORTS)[0]
    measured = files.read_json(seed.evaluation)
    assert left_out(measured) == ""
    files.write_json(seed.evaluation, {**measured, "n_too_long": 7})
    assert iteration_table(fake.run, REPORTS)[0]["held_out_pairs_too_long"] == 7
    assert "For 7 of them it had no room" in write_report(fake.run, REPORTS).read_text()
