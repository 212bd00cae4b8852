"""The forms in which public data sets hold a chat."""

from __future__ import annotations

import csv
import json
from collections import OrderedDict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.config.schema import PoolKnobs
from ste_jax.records import Instruction
from ste_jax.stages.intake import Rejected, read_pool
from ste_jax.stages.turns import opening, speaker

ASKED = "Name a river."
USER = {"role": "user", "content": ASKED}
PARTS = [{"type": "text", "text": "Name"}, {"type": "text", "text": "a river."}]


def read(path, **knobs):
    return list(read_pool(PoolKnobs(path=(str(path),), **knobs)))


def turns(row):
    assert isinstance(row, Instruction), row
    return [(turn["role"], turn["content"]) for turn in row.messages]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "human", "content": ASKED}]},
        {"messages": [{"role": "User", "content": ASKED}, {"role": "tool", "content": None}]},
        {"turns": [{"content": ASKED}]},
        {"turns": [ASKED, "And another?"]},
        {"conversation": [[ASKED, "The Rhine."]]},
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "Rhine"}]},
        {"conversations": {"from": ["human", "gpt"], "value": [ASKED, "Rhine"]}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}]},
        {"messages": [{"role": "system", "content": ""}, USER]},
        {"messages": [{"role": "system", "content": None}, USER]},
        {"prompt": [USER]},
        {"messages": [{"role": "user", "content": None, "value": ASKED}]},
        {"prompt": json.dumps([ASKED, "And another?", None])},
        {"messages": json.dumps([USER])},
        {"messages": json.dumps(USER)},
        {"instruction": json.dumps({"role": ["user"], "content": [ASKED]})},
        {"prompt": json.dumps({"from": ["human", "gpt"], "value": [ASKED, "The Rhine."]})},
        {"prompt": json.dumps({"content": [ASKED]})},
        {"messages": USER},
    ],
)
def test_the_user_s_first_turn(tmp_path, row):
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps(row))
    assert [turns(each) for each in read(path)] == [[("user", ASKED)]]


@pytest.mark.parametrize("role", ["system", "developer", "System"])
def test_a_system_turn_by_any_name(role):
    found = opening([{"role": role, "content": "Be brief."}, USER])
    assert [turn["role"] for turn in found] == ["system", "user"]


@pytest.mark.parametrize("form", [lambda turn: turn, lambda turn: [turn], json.dumps])
def test_parts_are_lines_of_one_text(form):
    assert opening(form({"role": "user", "content": PARTS}))[0]["content"] == "Name\na river."


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([{"role": "user", "content": [*PARTS, {"type": "image_url", "image_url": {}}]}], "image"),
        ([{"from": "gpt", "value": "Hello!"}, {"from": "human", "value": ASKED}], "assistant"),
        ([{"role": "tool", "content": "42"}], "tool"),
        ([{"role": "narrator", "content": "x"}], "narrator"),
        ([{"role": "system", "content": "Be brief."}], "no turn of the user"),
        ([{"role": "user"}], "content"),
        ([], "list of turns"),
        ("[]", "list of turns"),
        ({"a": 1}, "list of turns"),
        (5, "list of turns"),
        (str([USER]), "not JSON"),
        ("['Name a river.' 'And another?']", "not JSON"),
        (json.dumps({"role": "assistant", "content": "Hello!"}), "assistant"),
        (json.dumps({"messages": [USER]}), "list of turns"),
        (str(USER), "not JSON"),
        (str((USER,)), "not JSON"),
        (f"({USER}, {USER})", "not JSON"),
        ("{'role': array(['user'], dtype=object), 'content': array(['x'])}", "not JSON"),
        ("[array(['x'], dtype=object)]", "not JSON"),
        ("array([{'role': 'user', 'content': 'x'}], dtype=object)", "not JSON"),
        (str([OrderedDict(USER)]), "not JSON"),
        ("[OrderedDict([('role', 'user'), ('content', 'x')])]", "not JSON"),
        ("[ChatMessage(role='user', content='x')]", "not JSON"),
        ("[[{'role': 'user', 'content': \"x\"}]]", "not JSON"),
        ("('Name a river.', 'And another?')", "not JSON"),
    ],
)
def test_what_is_no_chat_is_set_aside_with_its_reason(tmp_path, value, reason):
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps({"messages": value, "n": 1}) + "\n")
    (row,) = read(path, instruction_field="messages")
    assert isinstance(row, Rejected) and row.line == 1 and reason in row.reason


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3]",
        "[x] is what?",
        "[[1, 2], [3, 4]]",
        '{"a": 1}',
        '{"text": "Hello!", "lang": "fr"}',
        "{'a': 1}",
        "{x}",
        "(a) or (b)",
        "print('hello')",
        "('a', 'b')",
        "{",
        "[",
        "",
    ],
)
def test_a_text_in_brackets_is_a_text(text):
    assert opening(text) == ({"role": "user", "content": text},)


@pytest.mark.parametrize(
    "text", ["[x] is what?", "(a) or (b)", "print('hello')", "{x}", '{"a": 1}']
)
def test_so_it_is_in_a_column_of_chats(text):
    assert opening(text, "turns") == ({"role": "user", "content": text},)


def test_a_path_into_a_list_does_not_take_another_s_turn(tmp_path):
    path = tmp_path / "pool.json"
    turns_b = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "A lake?"}]
    rows = [{"conversations": [{"from": "human", "value": ASKED}]}, {"conversations": turns_b}]
    path.write_text(json.dumps(rows))
    first, second = read(path, instruction_field="conversations[0].value")
    assert turns(first) == [("user", ASKED)]
    assert isinstance(second, Rejected) and "turn of system" in second.reason
    assert turns(read(path)[1]) == [("system", "Be brief."), ("user", "A lake?")]
    assert speaker({"text": "Hello!", "role": "assistant"}, "text") == "assistant"
    assert speaker({"instruction": "Hello!", "role": "assistant"}, "instruction") == ""
    assert speaker({"c.0.content": "x", "c.0.role": "system"}, "c.0.content") == "system"


def test_a_list_in_a_cell_of_csv_and_in_maps_and_bytes_of_parquet(tmp_path):
    table = tmp_path / "pool.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps([USER])], [str([USER])]])
    good, bad = read(table)
    assert turns(good) == [("user", ASKED)] and isinstance(bad, Rejected)
    good, bad = read(table, instruction_field="messages[0].content")
    assert turns(good) == [("user", ASKED)] and isinstance(bad, Rejected)
    kind = pa.list_(pa.map_(pa.string(), pa.string()))
    columns = {
        "messages": pa.array([[list(USER.items())]], kind),
        "note": pa.array([[(1, b"x")]], pa.map_(pa.int64(), pa.binary())),
    }
    pq.write_table(pa.table(columns), tmp_path / "maps.parquet")
    pq.write_table(pa.table({"prompt": pa.array([ASKED.encode()])}), tmp_path / "bytes.parquet")
    for name in ("maps", "bytes"):
        (row,) = read(tmp_path / f"{name}.parquet")
        assert turns(row) == [("user", ASKED)]


NAMES = st.sampled_from(["role", "content", "from", "value", "text", "type", "user"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(value=JSON)
def test_any_value_is_a_chat_or_refused_with_a_reason(value):
    try:
        found = opening(value)
    except ValueError as error:
        assert str(error)
    else:
        assert [turn["role"] for turn in found] in (["user"], ["system", "user"])
