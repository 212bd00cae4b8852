"""CSV: fields of any length, and a quote that is not closed."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.config.schema import PoolKnobs
from ste_jax.records import Instruction
from ste_jax.stages import sources
from ste_jax.stages.intake import Rejected, read_pool
from ste_jax.system.errors import RequestError


def read(path, **knobs):
    return list(read_pool(PoolKnobs(path=(str(path),), **knobs)))


def texts(rows):
    return [row.messages[0]["content"] if isinstance(row, Instruction) else row for row in rows]


def test_long_fields(tmp_path):
    path, long = tmp_path / "pool.csv", "word " * 40_000
    path.write_text(f'instruction,note\nName a river.,x\n"{long}",y\nName a lake.,"{long}"\n')
    first, second, third = read(path)
    assert texts([first, third]) == ["Name a river.", "Name a lake."]
    assert isinstance(second, Rejected) and second.line == 3 and "max_chars" in second.reason
    assert len(texts(read(path, max_chars=300_000))[1]) == len(long.strip())


@pytest.mark.parametrize("rest", ["", 'Name a tree.,"d, e"\n', "x\n" * 5])
def test_a_quote_that_is_not_closed_is_an_error_at_its_line(tmp_path, rest):
    path = tmp_path / "pool.csv"
    path.write_text('instruction,source\nName a river.,a\n"Name a lake.,b\nName a city.,c\n' + rest)
    rows = read_pool(PoolKnobs(path=(str(path),)))
    assert texts([next(rows)]) == ["Name a river."]
    with pytest.raises(RequestError, match=r"pool\.csv, line 3: a quote"):
        list(rows)


def test_an_open_quote_does_not_take_all_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_FIELD", 1000)
    path = tmp_path / "pool.csv"
    path.write_text('instruction\n"Name a lake.\n' + "x\n" * 1000)
    with pytest.raises(RequestError, match=r"line 2: a quote.*field limit \(1000\)"):
        read(path)


@pytest.mark.parametrize(("sign", "called"), [(";", "semicolons"), ("\t", "tabs")])
def test_columns_that_are_not_parted_by_commas(tmp_path, sign, called):
    path = tmp_path / "pool.csv"
    path.write_text(f'instruction{sign}n\nName "a" river{sign}1\n"open{sign}2\n')
    with pytest.raises(RequestError, match=f"parted by commas, and the first line has {called}"):
        read(path)


def test_a_file_of_tabs_is_refused_with_what_to_do(tmp_path):
    (path := tmp_path / "pool.tsv").write_text("instruction\tn\n")
    with pytest.raises(RequestError, match="; write it as CSV, with commas"):
        read(path)


def test_a_usual_name_in_capitals_is_taken_where_there_is_no_other(tmp_path):
    path = tmp_path / "pool.csv"
    path.write_text("Question,text\nName a river.,Name a lake.\nName a city.,\n")
    assert texts(read(path)) == ["Name a lake.", "Name a city."]


def test_quotes_that_are_wrong_within_a_line_cost_that_row(tmp_path):
    path = tmp_path / "pool.csv"
    path.write_text('instruction,n\n"Say "hi" to me",1\nName a river.,2\n')
    bad, good = read(path)
    assert isinstance(bad, Rejected) and bad.line == 2 and texts([good]) == ["Name a river."]


def test_a_row_is_named_by_the_line_that_it_begins_in(tmp_path):
    path = tmp_path / "pool.csv"
    path.write_text('instruction,n\n"two\nlines",1\n\nshort\nlong,1,2\n')
    first, second, third = read(path)
    assert first.source.endswith(":2") and second.source.endswith(":5") and third.line == 6


def test_other_encodings(tmp_path):
    path = tmp_path / "pool.csv"
    path.write_bytes("instruction\ncafé\nriver\n".encode("latin-1"))
    bad, good = read(path)
    assert (bad.line, bad.reason) == (2, "not UTF-8") and texts([good]) == ["river"]
    text = 'instruction,note\r\nName a river.,"é"\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert texts(read(path)) == ["Name a river."]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_utf_16_is_named(tmp_path, encoding, ending):
    path = tmp_path / f"pool.{ending}"
    path.write_bytes('["instruction"]\n'.encode(encoding))
    with pytest.raises(RequestError, match=f"pool.{ending}.*UTF-16"):
        read(path)


def test_a_column_named_twice(tmp_path):
    path = tmp_path / "pool.csv"
    path.write_text("instruction,,,instruction\na,,,b\n")
    with pytest.raises(RequestError, match="names the column 'instruction' twice"):
        read(path)
    path.write_text("instruction,,\na,,\n")
    assert texts(read(path)) == ["a"]


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "pool.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("instruction", "note"), *rows])
    raw = [
        (each.values["instruction"], each.values["note"])
        for each in sources.read_source(str(path), "")
    ]
    assert raw == rows
