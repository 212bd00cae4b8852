"""Templates: places are filled once, examples become turns, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import re

import pytest

from ste_jax.prompts.render import PLACES, TEMPLATES, fill, load_template, transcript
from ste_jax.system.errors import RequestError
from ste_jax.tasks import PAIRWISE, TASKS


def test_what_is_filled_in_is_not_looked_at_again():
    values = {"instruction": "{answer_a} {x}", "answer_a": "secret"}
    assert fill("{instruction}|{answer_a}|{other}", values) == "{answer_a} {x}|secret|{other}"


def test_examples_are_turns_and_the_start_begins_their_replies(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(
        "system: sort {categories}\nuser: 'Q: {instruction}'\nstart: 'C:'\n"
        "examples: [{instruction: one, reply: ' x'}]\n"
    )
    turns = load_template(str(path), PLACES["classify"]).messages(
        instruction="two", categories="x, y"
    )
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("system", "sort x, y"),
        ("user", "Q: one"),
        ("assistant", "C: x"),
        ("user", "Q: two"),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "cannot be read"),
        ("system: x", "user"),
        ("user: x\nusr: y", "no more"),
        ("user: '{answer}'", "answer"),
        ("user: 5", "user is 5, not a text"),
        ("user: hello", "no place {instruction}"),
        ("user: '{instruction}'\nexamples: [{instruction: x, reply: 84}]", "reply is 84"),
        ("user: '{instruction}'\nexamples: [{reply: x}]", "example 0 lacks instruction"),
        ("user: '{instruction}'\nexamples: [{instruction: x}]", "example 0 lacks reply"),
    ],
)
def test_what_is_wrong_with_a_template_is_named(tmp_path, text, told):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=re.escape(told)):
        load_template(str(path), PLACES["classify"])


def test_no_such_template():
    with pytest.raises(RequestError, match=r"shipped: .*judge"):
        load_template("absent", PAIRWISE.places)


def places_of(name):
    """The places of a shipped template, whose name is that of its role or ends in it."""
    known = {**PLACES, **{task.template: task.places for task in TASKS.values()}}
    role = max((each for each in known if f"-{name}".endswith(f"-{each}")), key=len, default=None)
    assert role, f"{name}: a template is called NAME-ROLE, with a role among {', '.join(known)}"
    return known[role]


def test_the_name_of_a_template_ends_in_its_role(monkeypatch):
    for name in ("judge", "small-judge", "my-own-judge"):
        assert places_of(name) is PAIRWISE.places
    longer = dataclasses.replace(PAIRWISE, template="short-judge", places=PLACES["modify"])
    monkeypatch.setitem(TASKS, "longer", longer)
    assert places_of("small-short-judge") is PLACES["modify"]
    for name in ("misjudge", "judge-small"):
        with pytest.raises(AssertionError, match=f"{name}: a template is called NAME-ROLE"):
            places_of(name)


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_template_can_be_used(path):
    places = places_of(path.stem)
    template = load_template(path.stem, places)
    turns = template.messages(**{place: f"<{place}>" for place in places.known})
    assert "<instruction>" in turns[-1]["content"]


def test_transcript():
    one = ({"role": "user", "content": "hi"},)
    two = (*one, {"role": "assistant", "content": "hello"})
    assert transcript(one) == "hi"
    assert transcript(two) == "User: hi\n\nAssistant: hello"
