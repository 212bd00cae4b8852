"""Benchmark files become pairs with the right answer chosen, or an error that says where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.evaluation import readers
from ste_jax.evaluation.readers import READERS, jsonl_rows, pair_of, read_pairs
from ste_jax.records import Pair
from ste_jax.system.errors import RequestError

LLMBAR = Path(__file__).parents[3] / "shared" / "data" / "llmbar"
ROW = {"instruction": "Add 1 and 2.", "response_a": "3", "response_b": "4", "label": "A"}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_better_answer_is_chosen(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "sums.jsonl", ROW, {**ROW, "label": "B"})
    first, second = read_pairs("pairs", path)
    assert (first.chosen, first.rejected) == ("3", "4")
    assert (second.chosen, second.rejected) == ("4", "3")
    assert first.messages == ({"role": "user", "content": "Add 1 and 2."},)
    assert first.source == "sums"
    assert first.id != second.id and first.instruction_id == second.instruction_id


@pytest.mark.parametrize("label", ["A", "a", 1, "1", "response_a", " Response_A "])
def test_labels_of_the_first(tmp_path: Path, label: Any) -> None:
    (pair,) = read_pairs("pairs", jsonl(tmp_path / "p.jsonl", {**ROW, "label": label}))
    assert pair.chosen == "3"


@pytest.mark.parametrize("label", ["B", "b", 2, "2", "response_b"])
def test_labels_of_the_second(tmp_path: Path, label: Any) -> None:
    (pair,) = read_pairs("pairs", jsonl(tmp_path / "p.jsonl", {**ROW, "label": label}))
    assert pair.chosen == "4"


@pytest.mark.parametrize("label", ["C", "", "tie", 0, 3, 1.0, True, None, ["A"], {"A": 1}])
def test_other_labels_are_refused(tmp_path: Path, label: Any) -> None:
    path = jsonl(tmp_path / "p.jsonl", ROW, {**ROW, "label": label})
    with pytest.raises(RequestError, match=r"p\.jsonl, line 2.*'label' must be A or B"):
        list(read_pairs("pairs", path))


@pytest.mark.parametrize("missing", ["instruction", "response_a", "response_b", "label"])
def test_a_missing_field_is_named(tmp_path: Path, missing: str) -> None:
    row = {key: value for key, value in ROW.items() if key != missing}
    path = jsonl(tmp_path / "p.jsonl", ROW, ROW, row)
    with pytest.raises(RequestError, match=rf"p\.jsonl, line 3: the field '{missing}' is missing"):
        list(read_pairs("pairs", path))


@pytest.mark.parametrize("key", ["instruction", "response_a", "response_b"])
@pytest.mark.parametrize("value", [None, 3, ["text"]])
def test_a_field_that_is_no_text_is_named(tmp_path: Path, key: str, value: Any) -> None:
    path = jsonl(tmp_path / "p.jsonl", {**ROW, key: value})
    with pytest.raises(RequestError, match=f"line 1: the field '{key}' must be text"):
        list(read_pairs("pairs", path))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "line 2 is not JSON"),
        (b"\xff\xfe", "line 2 is not JSON in UTF-8"),
        (b"[1]", "line 2 must be a JSON object, not list"),
        (b"9" * 5000, "line 2 is not JSON"),
        (json.dumps({**ROW, "instruction": " "}).encode(), "'instruction' is empty"),
        (json.dumps({**ROW, "response_b": "\ud800"}).encode(), "'response_b' holds a lone"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, told: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + line + b"\n")
    with pytest.raises(RequestError, match=told):
        list(read_pairs("pairs", path))


def test_rows_before_a_malformed_one_do_not_wait_for_it(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", ROW, 3)
    assert next(read_pairs("pairs", path)).chosen == "3"


@pytest.mark.parametrize(
    ("benchmark", "text"), [("pairs", ""), ("pairs", "\n \n"), ("llmbar", "[]")]
)
def test_a_file_without_rows_is_refused(tmp_path: Path, benchmark: str, text: str) -> None:
    path = tmp_path / "empty.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"empty\.json holds no pairs"):
        list(read_pairs(benchmark, path))


@pytest.mark.parametrize("benchmark", ["pairs", "llmbar"])
def test_a_file_that_is_not_there_or_a_directory(tmp_path: Path, benchmark: str) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(RequestError, match=f"{path} cannot be read"):
            list(read_pairs(benchmark, path))


def test_an_unknown_benchmark_lists_the_known_at_once(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"named '-'; known: {', '.join(READERS)}$"):
        read_pairs("-", tmp_path / "p.jsonl")


@pytest.mark.parametrize(("better", "chosen"), [("first", "3"), ("second", "4")])
def test_a_reader_may_know_the_better_answer_without_a_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: Any, chosen: str
) -> None:
    def read(path: epath.Path) -> Iterator[tuple[str, Pair]]:
        for place, row in jsonl_rows(path):
            yield place, pair_of(row, path, place, "asked", "one", "two", better=better)

    monkeypatch.setitem(readers.READERS, "own", read)
    row = {"asked": "Add 1 and 2.", "one": "3", "two": "4"}
    path = jsonl(tmp_path / "p.jsonl", row, {**row, "asked": "2 + 1?", "label": "sums"})
    plain, labelled = read_pairs("own", path)
    assert plain.chosen == labelled.chosen == chosen
    assert plain.extra == "" and json.loads(labelled.extra) == {"label": "sums"}
    jsonl(path, row, {"asked": "Add 1 and 2.", "one": "3"})
    with pytest.raises(RequestError, match=r"p\.jsonl, line 2: the field 'two' is missing"):
        list(read_pairs("own", path))


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n\r\n")
    assert len(list(read_pairs("pairs", path))) == 1


def test_equal_pairs_collapse_and_order_stays(tmp_path: Path) -> None:
    other = {**ROW, "instruction": "Add 0 and 3."}
    swapped = {**ROW, "response_a": "4", "response_b": "3", "label": "B"}
    path = jsonl(tmp_path / "p.jsonl", other, ROW, other, {**ROW, "extra": 1}, swapped)
    asked = [pair.messages[0]["content"] for pair in read_pairs("pairs", path)]
    assert asked == ["Add 0 and 3.", "Add 1 and 2."]


def test_llmbar(tmp_path: Path) -> None:
    path = tmp_path / "natural.json"
    rows = [
        {"input": "Q", "output_1": "one", "output_2": "two", "label": 2},
        {"input": "Q", "output_1": "one", "output_2": "two", "label": 3},
    ]
    path.write_text(json.dumps(rows[:1]))
    (pair,) = read_pairs("llmbar", path)
    assert (pair.chosen, pair.rejected, pair.source) == ("two", "one", "natural")
    path.write_text(json.dumps(rows))
    with pytest.raises(RequestError, match=r"natural\.json, row 2: the field 'label'"):
        list(read_pairs("llmbar", path))
    path.write_text(json.dumps({"rows": rows}))
    with pytest.raises(RequestError, match="must be a JSON array of rows, not dict"):
        list(read_pairs("llmbar", path))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_texts_come_through_unchanged(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("texts") / "p.jsonl"
    (pair,) = read_pairs("pairs", jsonl(path, {**ROW, "instruction": text, "response_a": text}))
    assert pair.messages[0]["content"] == text and pair.chosen == text


@pytest.mark.skipif(not LLMBAR.exists(), reason="the public LLMBar files are not here")
@pytest.mark.parametrize(("name", "rows"), [("natural", 100), ("neighbor", 134), ("manual", 46)])
def test_the_real_llmbar(name: str, rows: int) -> None:
    path = LLMBAR / f"{name}.json"
    pairs = list(read_pairs("llmbar", path))
    raw = json.loads(path.read_text())
    better = Counter(row[f"output_{row['label']}"] for row in raw)
    assert len(raw) == rows
    assert len({pair.id for pair in pairs}) == len(pairs) <= rows
    assert not Counter(pair.chosen for pair in pairs) - better
