"""What stands beside an instruction and belongs to it is asked with it."""

from __future__ import annotations

import json

import pytest

from ste_jax.config.schema import PoolKnobs
from ste_jax.records import Instruction, instruction_id
from ste_jax.stages.intake import Rejected, collapse, read_pool

SAID = [
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The Rhine."},
]


def read(path, rows, **knobs):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_pool(PoolKnobs(path=(str(path),), **knobs)))


def turns(row):
    assert isinstance(row, Instruction), row
    return [(turn["role"], turn["content"]) for turn in row.messages]


@pytest.mark.parametrize("name", ["input", "context"])
def test_rows_that_differ_in_their_text_are_not_one(tmp_path, name):
    rows = [
        {"instruction": "Summarize.", name: "Bees make honey.", "output": "."},
        {"instruction": "Summarize.", name: "Trains were late.", "output": "."},
        {"instruction": "Name a colour.", name: "", "output": "Red"},
        {"instruction": "Name a colour.", name: None, "output": "Blue"},
    ]
    found = read(tmp_path / "pool.jsonl", rows)
    assert [turns(row)[-1][1] for row in found] == [
        "Summarize.\n\nBees make honey.",
        "Summarize.\n\nTrains were late.",
        "Name a colour.",
        "Name a colour.",
    ]
    counts = {}
    assert len(list(collapse(found, counts, []))) == 3 and counts["duplicates"] == 1
    assert found[2].id == instruction_id([{"role": "user", "content": "Name a colour."}])
    assert json.loads(found[0].extra) == {"output": "."}


@pytest.mark.parametrize("name", ["system_prompt", "system"])
def test_a_system_prompt_becomes_the_system_turn(tmp_path, name):
    rows = [
        {name: "Answer in French.", "question": "Name a river."},
        {name: " ", "question": "Name a river."},
        {name: "Be brief.", "messages": [{"role": "system", "content": "Be brief."}, SAID[0]]},
        {name: "Be brief.", "messages": [{"role": "system", "content": "Be kind."}, SAID[0]]},
    ]
    found = [turns(row) for row in read(tmp_path / "pool.jsonl", rows)]
    asked = ("user", "Name a river.")
    assert found == [
        [("system", "Answer in French."), asked],
        [asked],
        [("system", "Be brief."), asked],
        [("system", "Be brief.\n\nBe kind."), asked],
    ]


@pytest.mark.parametrize(
    "history",
    [
        [["Name a river.", "The Rhine."]],
        SAID,
        [{"from": "human", "value": "Name a river."}, {"from": "gpt", "value": "The Rhine."}],
        json.dumps([["Name a river.", "The Rhine."]]),
    ],
)
def test_history_comes_before(tmp_path, history):
    (row,) = read(tmp_path / "pool.jsonl", [{"instruction": "And another?", "history": history}])
    assert turns(row) == [
        ("user", "Name a river."),
        ("assistant", "The Rhine."),
        ("user", "And another?"),
    ]


@pytest.mark.parametrize("history", [None, "", " ", [], "[]", float("nan")])
def test_no_history(tmp_path, history):
    (row,) = read(tmp_path / "pool.jsonl", [{"instruction": "Go on.", "history": history}])
    assert turns(row) == [("user", "Go on.")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history", "they spoke of rivers"),
        ("history", [["Name a river.", ""]]),
        ("history", [SAID[1], SAID[0]]),
        ("history", 3),
        ("context", {"title": ["x"]}),
        ("input", True),
        ("system", {"a": 1}),
    ],
)
def test_what_cannot_be_read_sets_the_row_aside(tmp_path, name, value):
    (row,) = read(tmp_path / "pool.jsonl", [{"instruction": "Go on.", name: value}])
    assert isinstance(row, Rejected) and f"field {name} " in row.reason
    assert "pool.context_fields" in row.reason


def test_which_columns_belong_to_it_is_a_knob(tmp_path):
    rows = [{"instruction": "Summarize.", "input": "Bees.", "passage": "Trains."}]
    path = tmp_path / "pool.jsonl"
    (row,) = read(path, rows, context_fields=())
    assert turns(row) == [("user", "Summarize.")] and json.loads(row.extra)["input"] == "Bees."
    (row,) = read(path, rows, context_fields=("passage",))
    assert turns(row) == [("user", "Summarize.\n\nTrains.")]
    (row,) = read(path, rows, instruction_field="input")
    assert turns(row) == [("user", "Bees.")]


def test_a_text_that_is_in_the_instruction_is_not_said_twice(tmp_path):
    rows = [
        {"prompt": "Summarize:\nBees make honey.\nBriefly.", "input": "Bees make honey."},
        {"prompt": "Capitalize the word.", "input": "word"},
        {"prompt": "Name a tree.", "input": "<noinput>"},
    ]
    found = [turns(row)[0][1] for row in read(tmp_path / "pool.jsonl", rows)]
    assert found == [rows[0]["prompt"], "Capitalize the word.\n\nword", "Name a tree."]


def test_self_instruct_has_its_input_in_an_instance(tmp_path):
    instances = [{"input": "she go", "output": "she goes"}]
    rows = [{"instruction": "Correct.", "instances": instances}]
    (row,) = read(tmp_path / "pool.jsonl", rows)
    assert turns(row) == [("user", "Correct.\n\nshe go")]
    assert json.loads(row.extra) == {"instances": instances}


@pytest.mark.parametrize("named", [{}, {"context_fields": ("data.input", "data.system_prompt")}])
@pytest.mark.parametrize("flat", [False, True])
def test_what_stands_beside_a_nested_instruction_is_asked_with_it(tmp_path, named, flat):
    groups = [
        {"instruction": "Summarize.", "input": "Bees.", "system_prompt": "Be brief."},
        {"instruction": "Summarize.", "input": "Trains.", "system_prompt": None},
        {"instruction": "Summarize."},
    ]
    rows = [
        {f"data.{name}": value for name, value in each.items()} if flat else {"data": each}
        for each in groups
    ]
    found = read(tmp_path / "pool.jsonl", rows, instruction_field="data.instruction", **named)
    assert [turns(row) for row in found] == [
        [("system", "Be brief."), ("user", "Summarize.\n\nBees.")],
        [("user", "Summarize.\n\nTrains.")],
        [("user", "Summarize.")],
    ]
    assert len(list(collapse(found, {}, []))) == 3


@pytest.mark.parametrize("named", [{}, {"context_fields": ("a.b[0].history", "system")}])
def test_a_nested_history_comes_before_and_the_top_is_read_as_well(tmp_path, named):
    inner = {"instruction": "And another?", "history": [["Name a river.", "The Rhine."]]}
    rows = [{"system": "Be brief.", "a": {"b": [inner]}}]
    (row,) = read(tmp_path / "pool.jsonl", rows, instruction_field="a.b[0].instruction", **named)
    assert turns(row) == [
        ("system", "Be brief."),
        ("user", "Name a river."),
        ("assistant", "The Rhine."),
        ("user", "And another?"),
    ]


def test_what_holds_the_instruction_is_not_read_again(tmp_path):
    rows = [{"input": {"context": "Bees.", "question": "Who makes honey?"}}]
    (row,) = read(tmp_path / "pool.jsonl", rows, instruction_field="input.question")
    assert turns(row) == [("user", "Who makes honey?\n\nBees.")]
