"""JSON is read as a stream; what is wrong with a row costs that row."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.stages import sources
from ste_jax.system.errors import RequestError

ROWS = st.lists(
    st.dictionaries(st.text(max_size=3), st.text(max_size=9) | st.integers() | st.floats(-9, 9)),
    max_size=6,
)


def read(path):
    return list(sources.read_source(str(path), ""))


@settings(max_examples=100, derandomize=True, deadline=None)
@given(rows=ROWS, indent=st.sampled_from([None, 1]), at_once=st.integers(1, 40))
def test_an_array_is_read_in_pieces_of_any_size(tmp_path_factory, rows, indent, at_once):
    path = tmp_path_factory.mktemp("json") / "pool.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    path.write_bytes(b"\xef\xbb\xbf" + text + b"\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_AT_ONCE", at_once)
        assert [(row.line, row.values) for row in read(path)] == list(enumerate(rows, start=1))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not nothing"),
        ("5", "not something else"),
        ('{"data": []}', "not one object"),
        ('[{"instruction": "a"}', "row 2: a comma or the array's end is missing"),
        ('[{"instruction": "a"},]', "row 2: nothing follows the last comma"),
        ('[{"instruction": "a"}, {"instr', "row 2: Unterminated"),
        ('[{"instruction": "a"}] x', "something follows"),
        ('[{"instruction": a}, {"instruction": "b"}]', "row 1: Expecting value"),
        ('[{"instruction": "a"}, ' + "[" * 2000 + "]" * 2000 + "]", "row 2: nested too deep"),
    ],
)
def test_an_array_that_is_wrong_is_told_by_its_row(tmp_path, text, told):
    path = tmp_path / "pool.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=rf"pool\.json.*{told}"):
        read(path)


def test_a_row_that_is_wrong_costs_that_row(tmp_path):
    deep = "[" * 150 + "]" * 150
    rows = ['{"instruction": "a", "instruction": "b"}', f'{{"x": {deep}}}', "3", '{"text": "ok"}']
    wanted = ["'instruction' stands twice", "nested more than 100 deep", "not an object", ""]
    (tmp_path / "pool.json").write_text(f"[{','.join(rows)}]")
    (tmp_path / "pool.jsonl").write_text("\n".join(rows))
    for ending in ("json", "jsonl"):
        found = read(tmp_path / f"pool.{ending}")
        assert [row.line for row in found] == [1, 2, 3, 4]
        assert all(want in row.reason for want, row in zip(wanted, found, strict=True))
        assert found[3].values == {"text": "ok"}


def test_json_lines_by_the_name_of_json(tmp_path):
    path = tmp_path / "pool.json"
    path.write_text('{"instruction": "a"}\n{"instruction": "b"}\n')
    assert [row.values["instruction"] for row in read(path)] == ["a", "b"]
