"""Is a file of JSON lines read line by line, a bad line by itself?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.system import notation
from ste_jax.system.jsonl import Line, read_jsonl


@given(
    st.lists(
        st.none() | st.text() | st.dictionaries(st.text(), st.integers()), min_size=1, max_size=5
    )
)
def test_every_line_is_read(tmp_path_factory: pytest.TempPathFactory, values: list[object]) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    path.write_bytes("\r\n\n".join(map(json.dumps, values)).encode("utf-8-sig"))
    assert list(read_jsonl(path)) == [Line(2 * n + 1, value) for n, value in enumerate(values)]


def test_a_bad_line_is_told_with_its_number_and_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b'{"a": 1}\n\n{\n"\xff"\n{"a": 1, "a": 2}\n[]')
    found = list(read_jsonl(tmp_path / "rows"))
    assert [line.number for line in found] == [1, 3, 4, 5, 6]
    assert [line.value for line in found] == [{"a": 1}, None, None, None, []]
    assert not found[0].fault and not found[4].fault
    assert found[1].fault.startswith("Expecting property name")
    assert "not UTF-8" in found[2].fault and "stands twice" in found[3].fault


@given(st.text())
def test_half_of_a_pair_is_what_no_file_can_hold(text: str) -> None:
    assert notation.has_lone_surrogate(text) == any(0xD800 <= ord(each) < 0xE000 for each in text)
    assert notation.has_lone_surrogate(f"{text}\ud83d")
