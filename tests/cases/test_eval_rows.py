"""Labelled pairs of which none is better, or that stand in a file more than once."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest
from etils import epath

from ste_jax.config.schema import EvaluateKnobs, LabelledSetKnobs
from ste_jax.evaluation.readers import read_pairs
from ste_jax.parallel.processes import Processes
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.intake import take_in_labelled
from ste_jax.run.layout import RunDir
from ste_jax.system import files
from ste_jax.system.errors import RequestError

ROW = {"instruction": "Add 2 and 3.", "response_a": "5", "response_b": "6", "label": "A"}
EASY, HARD = {**ROW, "section": "easy"}, {**ROW, "section": "hard"}


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("other", ["5", "5\n", " 5"])
def test_equal_answers_are_refused(tmp_path, other):
    path = jsonl(tmp_path / "p.jsonl", ROW, {**ROW, "response_b": other})
    with pytest.raises(RequestError, match=r"line 2: 'response_a' and 'response_b' are the same"):
        list(read_pairs("pairs", path))


@pytest.mark.parametrize("key", ["instruction", "response_a", "response_b"])
def test_an_empty_text_is_refused(tmp_path, key):
    path = jsonl(tmp_path / "p.jsonl", {**ROW, key: " \n"})
    with pytest.raises(RequestError, match=f"line 1: the field '{key}' is empty"):
        list(read_pairs("pairs", path))


def test_a_key_that_stands_twice_and_deep_rows_are_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(ROW)[:-1] + ', "label": "B"}\n')
    with pytest.raises(RequestError, match=r"line 1 is not JSON.*'label' stands twice"):
        list(read_pairs("pairs", path))
    path.write_text('{"x": ' + "[" * 1000 + "]" * 1000 + "}\n")
    with pytest.raises(RequestError, match=r"line 1 is not JSON.*nested more than 100 deep"):
        list(read_pairs("pairs", path))


def test_utf_16_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes((json.dumps(ROW) + "\n").encode("utf-16"))
    with pytest.raises(RequestError, match=r"p\.jsonl, line 1.*UTF-16"):
        list(read_pairs("pairs", path))


def test_both_labels_of_one_pair_are_told(tmp_path):
    swapped = {**ROW, "response_a": "6", "response_b": "5"}
    path = jsonl(tmp_path / "p.jsonl", ROW, {**ROW, "instruction": "Other."}, swapped)
    with pytest.warns(UserWarning, match="both labels.*: 1; the first: line 3 .* line 1 "):
        assert len(list(read_pairs("pairs", path))) == 3


def test_a_pair_that_is_left_out_is_told(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", EASY, HARD)
    with pytest.warns(UserWarning, match="left out .*: 1; the first: line 2 repeats line 1"):
        assert len(list(read_pairs("pairs", path))) == 1


def test_a_pair_in_two_sections_counts_in_both(tmp_path):
    other = {**ROW, "instruction": "Add 1 and 1.", "section": "easy"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = jsonl(tmp_path / "p.jsonl", EASY, HARD, other)
        found = list(read_pairs("pairs", path, ["section"]))
        assert len({pair.id for pair in found}) == 3
        path = jsonl(tmp_path / "p.jsonl", other, HARD, EASY)
        again = list(read_pairs("pairs", path, ["section"]))
        assert {pair.id: pair.extra for pair in again} == {pair.id: pair.extra for pair in found}
        (alone,) = read_pairs("pairs", jsonl(tmp_path / "p.jsonl", EASY), ["section"])
        (plain,) = read_pairs("pairs", tmp_path / "p.jsonl")
    assert alone == plain  # as it always was


def test_a_run_measures_both_sections(tmp_path):
    knobs = LabelledSetKnobs(
        name="mine", data=str(jsonl(tmp_path / "p.jsonl", EASY, HARD)), by=("section",)
    )
    run = RunDir(epath.Path(tmp_path / "run"))
    files.write_json(run.manifest, {"shards": 2})
    config = SimpleNamespace(evaluate=EvaluateKnobs(sets=(knobs,)))
    take_in_labelled(
        Context(config=config, run=run, processes=Processes(), log=lambda *_, **__: None)
    )
    rows = list(run.labelled("mine").rows())
    assert sorted(json.loads(row.extra)["section"] for row in rows) == ["easy", "hard"]
    assert len({row.instruction_id for row in rows}) == 1
