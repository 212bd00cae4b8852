"""Every kind of file gives instructions; what cannot be used is set aside by file, line and
reason."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ste_jax.config.schema import PoolKnobs
from ste_jax.records import Instruction
from ste_jax.stages import sources
from ste_jax.stages.intake import Rejected, at_path, collapse, read_pool
from ste_jax.system.errors import RequestError

ROWS = [{"instruction": "one", "n": 1}, {"instruction": "two", "n": 2}]


def texts(path, **knobs):
    rows = read_pool(PoolKnobs(path=(str(path),), **knobs))
    return [row.messages[0]["content"] if isinstance(row, Instruction) else row for row in rows]


def write(path):
    lines = "\n".join(json.dumps(row) for row in ROWS)
    if path.suffix == ".jsonl":
        path.write_text(lines + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix == ".csv":
        path.write_text("instruction,n\none,1\ntwo,2\n")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_kinds_of_file(tmp_path, ending):
    assert texts(write(tmp_path / f"pool.{ending}")) == ["one", "two"]


@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_a_file_that_is_not_what_it_says(tmp_path, ending):
    path = tmp_path / f"pool.{ending}"
    path.write_text("{nothing")
    with pytest.raises(RequestError, match=f"pool.{ending}"):
        texts(path)


@pytest.mark.parametrize(
    "name",
    [
        "./typo",
        "../typo",
        "/no/such/pool",
        "~/pool",
        "my/own/pool",
        "data/",
        "a/b.txt",
        "b.jsonl.gz",
    ],
)
def test_a_name_of_a_file_is_not_looked_up_as_a_data_set(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(sources, "_read_dataset", lambda *_: pytest.fail("looked up"))
    with pytest.raises(RequestError, match=r"does not exist|is not a file"):
        texts(name)


@pytest.mark.parametrize("name", ["squad", "owner/name", "owner/name-v1.5"])
def test_a_name_of_a_data_set_is_looked_up(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    row = sources.Raw(name, 1, {"instruction": "Name a lake."})
    monkeypatch.setattr(sources, "_read_dataset", lambda *_: iter([row]))
    assert texts(name) == ["Name a lake."]


@pytest.mark.parametrize("name", ["absent.jsonl", "pool.txt"])
def test_no_such_file(tmp_path, name):
    (tmp_path / "pool.txt").write_text("x")
    with pytest.raises(RequestError, match=name):
        texts(tmp_path / name)


def test_bad_rows_are_set_aside_by_line(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text(
        '{"instruction": "ok"}\n{broken\n[1]\n{"instruction": " "}\n{"else": 1}\n"bare"\n'
    )
    rows = list(read_pool(PoolKnobs(path=(str(path),))))
    assert [(row.line, row.reason.split(":")[0]) for row in rows if isinstance(row, Rejected)] == [
        (2, "not JSON"),
        (3, "not an object with named fields"),
        (4, "field instruction is empty"),
        (5, rows[4].reason),
    ]
    assert "pool.instruction_field" in rows[4].reason
    assert isinstance(rows[5], Instruction)


def test_wildchat_form_with_filters(tmp_path):
    path = tmp_path / "wild.jsonl"
    turns = [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "hello"}]
    rows = [
        {"conversation": turns, "language": "English", "toxic": False},
        {"conversation": turns, "language": "French", "toxic": False},
        {"conversation": turns, "language": "English", "toxic": True},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    require = {"language": "English", "toxic": "False"}
    for field in ("conversation[0].content", "conversation"):
        assert texts(path, instruction_field=field, require=require) == ["hi there"]


def test_unknown_columns_survive_and_ids_are_of_the_content(tmp_path):
    first, second = read_pool(PoolKnobs(path=(str(write(tmp_path / "pool.jsonl")),)))
    again, _ = read_pool(PoolKnobs(path=(str(write(tmp_path / "pool.csv")),)))
    assert json.loads(first.extra) == {"n": 1}
    assert first.id == again.id != second.id


def test_duplicates_collapse_and_everything_is_counted(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text('{"instruction": "a"}\n{"instruction": "a "}\n{bad\n{"instruction": "b"}\n')
    counts, aside = {}, []
    rows = list(collapse(read_pool(PoolKnobs(path=(str(path),))), counts, aside))
    assert len(rows) == 2
    assert counts == {"read": 4, "rejected": 1, "duplicates": 1, "kept": 2}
    assert [each.line for each in aside] == [3]


def test_the_shipped_set_can_be_taken_in():
    rows = list(read_pool(PoolKnobs()))
    assert len(rows) >= 190
    assert all(isinstance(row, Instruction) for row in rows)


def test_field_paths():
    values = {"a": [{"b": "x"}], "c": 1}
    assert at_path(values, "a[0].b") == "x"
    assert at_path(values, "a[1].b") is at_path(values, "c.d") is at_path(values, "z") is None


def test_a_row_with_too_many_fields_and_half_a_surrogate_are_set_aside(tmp_path):
    table = tmp_path / "pool.csv"
    table.write_text("\ufeffinstruction,n\none,1\ntwo,2,3\n", encoding="utf-8")
    first, second = read_pool(PoolKnobs(path=(str(table),)))
    assert isinstance(first, Instruction)
    assert isinstance(second, Rejected) and second.line == 3
    lines = tmp_path / "pool.jsonl"
    lines.write_text('{"instruction": "ok", "other": "\\ud800"}\n')
    (row,) = read_pool(PoolKnobs(path=(str(lines),)))
    assert isinstance(row, Rejected) and "surrogate" in row.reason


def test_zeros_of_a_crash_cost_their_line_and_nan_is_no_instruction(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b'{"instruction": NaN, "text": "ok"}\n\0\0\0\0\0\n[{"text": "a"}]\n')
    first, second, third = read_pool(PoolKnobs(path=(str(path),)))
    assert isinstance(first, Instruction) and first.messages[0]["content"] == "ok"
    assert second.line == 2 and "UTF-16" not in second.reason
    assert "end in .json" in third.reason
