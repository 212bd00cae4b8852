"""The whole recipe on a tiny model of random weights that fills every stage."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import datasets
import pytest
import yaml
from etils import epath

from ste_jax.checkpoints.card import read_card
from ste_jax.cli import main
from ste_jax.reporting.funnel import check_sums, funnel
from ste_jax.run.layout import RunDir
from tests import tiny
from tests.compiling import one_device
from tests.reports import REPORTS


@pytest.fixture(scope="module")
def small_way(tmp_path_factory) -> RunDir:
    """A finished run the other way through the stages."""
    root = tmp_path_factory.mktemp("small_way")
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(tiny.config_of_small_models(root)))
    with one_device():
        assert main(["run", str(path), "--dir", str(root / "run")]) == 0
    return RunDir(epath.Path(root / "run"))


def test_every_table_is_filled(finished):
    run, _ = finished
    tables = [run.pool, run.labels, run.selection, run.selected, run.pairs, run.dropped_pairs]
    for iteration in (1, 2):
        here = run.iteration(iteration)
        tables += [here.prompts, here.judgments, here.training]
        tables += [here.heldout.prompts, here.heldout.judgments]
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


def test_the_way_of_small_models_fills_its_tables_too(small_way):
    run = small_way
    tables = [run.labels, run.label_scores, run.selection, run.selected, run.pairs]
    tables += [run.dropped_pairs]
    for iteration in (1, 2):
        here = run.iteration(iteration)
        tables += [here.prompts, here.judgments, here.training, here.heldout.judgments]
    for table in tables:
        assert len(list(table.rows())) >= 20, table.directory
    assert {row.kind for row in run.label_scores.rows()} == {"category"}
    assert {row.fate for row in run.selection.rows()} >= {"kept", "category_dropped"}
    assert not any(row.forced for row in run.iteration(1).judgments.rows())
    judgments = list(run.iteration(1).judgments.rows())
    failed = {row.prompt_id for row in judgments if row.failure == "too_long"}
    drawn = Counter(row.prompt_id for row in judgments if row.prompt_id not in failed)
    assert set(drawn.values()) == {4}
    curation = json.loads(run.iteration(1).curation.read_text())
    assert set(curation["dropped"]) >= {"no_correct"}
    parents = [read_card(run.iteration(k).checkpoint)["provenance"] for k in (1, 2)]
    assert parents[1]["parent"] == parents[0]["fingerprint"]


def test_between_them_every_reason_to_drop_a_pair_is_met(finished, small_way):
    runs = [finished[0], small_way]
    met = {row.reason for run in runs for row in run.dropped_pairs.rows()}
    answers = {f"{which}_{why}" for which in ("answer", "rejected") for why in ("empty", "cut_off")}
    modified = {"cut_off", "repeated_mark", "wrong_order", "empty_instruction", "empty_response"}
    modified |= {"no_instruction_mark", "no_response_mark"}
    likeness = {"modified_is_same", "modified_copies_example", "same_answers"}
    no_room = {"answer_too_long"}
    assert met >= answers | {f"modify_{why}" for why in modified} | likeness | no_room


def test_every_number_of_the_funnel_adds_up(finished, small_way):
    for run in (finished[0], small_way):
        assert check_sums(funnel(run, REPORTS), REPORTS) == []


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
