"""The whole recipe on a tiny model of random weights that fills every stage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets

from ste_jax.reporting.funnel import check_sums, funnel


def test_every_table_is_filled(finished):
    run, _ = finished
    tables = [run.pool, run.labels, run.selection, run.selected, run.pairs, run.dropped_pairs]
    for iteration in (1, 2):
        here = run.iteration(iteration)
        tables += [here.prompts, here.judgments, here.training]
        tables += [here.evaluation_prompts, here.evaluation_judgments]
    for table in tables:
        assert len(list(table.rows())) >= 20, table.directory


def test_both_letters_and_every_reason_are_met(finished):
    run, _ = finished
    fates = {row.fate for row in run.selection.rows()}
    assert fates >= {"kept", "no_category", "category_dropped", "near_duplicate", "over_quota"}
    reasons = {row.reason for row in run.dropped_pairs.rows()}
    assert reasons >= {
        "answer_empty",
        "answer_cut_off",
        "modify_cut_off",
        "modify_no_response_mark",
        "modify_repeated_mark",
        "modify_empty_response",
        "modified_copies_example",
    }
    judgments = list(run.iteration(1).judgments.rows())
    assert {row.verdict for row in judgments} >= {"A", "B", None}
    assert {row.failure for row in judgments} >= {None, "no_verdict", "conflict", "cut_off"}
    assert any(row.forced for row in judgments)
    letters = Counter(row.label for row in run.iteration(1).training.rows())
    assert letters["A"] == letters["B"] >= 10


def test_every_number_of_the_funnel_adds_up(finished):
    run, _ = finished
    assert check_sums(funnel(run)) == []


def test_every_table_is_read_by_datasets(finished, tmp_path):
    run, _ = finished
    # `label_scores` is empty where labels are generated, and `datasets` reads no empty table
    files = Path(run.root).rglob("*.parquet")
    places = {path.parent for path in files if path.parent.name != "label_scores"}
    assert len(places) >= 13
    for place in places:
        rows = datasets.load_dataset(
            "parquet", data_dir=str(place), split="train", cache_dir=str(tmp_path)
        )
        assert "id" in rows.column_names
