"""An instruction becomes a pair, or is dropped with the reason that fits."""

from __future__ import annotations

import pytest

from ste_jax.config import PairKnobs
from ste_jax.generators.protocol import Sampling
from ste_jax.prompts.render import Template
from ste_jax.records import DroppedPair, Instruction, Pair, instruction_id
from ste_jax.stages.asking import Role
from ste_jax.stages.pair import pair
from tests.stages.scripted import Scripted

GOOD = "[Modified Instruction]\nname two rivers in Spain\n[Response]\nEbro and Tagus"
EXAMPLE = {
    "instruction": "how tall is the tower",
    "answer": "90 metres",
    "reply": "[Modified Instruction]\nhow old is the big tower\n[Response]\n90 years",
}


def make(said, knobs, start="", examples=(), before=()):
    sampling = Sampling(max_new_tokens=32)
    respond = Role(
        name="respond", template=Template(name="r", user="{instruction}"), sampling=sampling, key=1
    )
    template = Template(
        name="m", user="modify: {instruction} / {answer}", start=start, examples=examples
    )
    modify = Role(name="modify", template=template, sampling=sampling, key=2)

    def reply(request, sample):
        text = request.messages[-1]["content"]
        return said["modify" if text.startswith("modify:") else text]

    generator = Scripted(reply)
    messages = (*before, {"role": "user", "content": "name two rivers in France"})
    row = Instruction(id=instruction_id(messages), messages=messages, source="test")
    ((_, found),) = pair([row], generator, respond, modify, knobs, in_flight=1)
    return found, generator


ANSWER = {"name two rivers in France": "Seine and Loire"}


def test_a_pair_from_one_reply():
    found, generator = make({**ANSWER, "modify": GOOD}, PairKnobs())
    assert isinstance(found, Pair)
    assert (found.chosen, found.rejected) == ("Seine and Loire", "Ebro and Tagus")
    assert found.modified_instruction == "name two rivers in Spain"
    assert generator.asked[1].messages[-1]["content"] == (
        "modify: name two rivers in France / Seine and Loire"
    )
    assert len(generator.released) == 2


def test_a_pair_whose_rejected_answer_is_asked_for_alone():
    said = {**ANSWER, "modify": " name two rivers in Spain", "name two rivers in Spain": "Ebro."}
    found, _ = make(said, PairKnobs(rejected_from="respond"), start="Another:")
    assert isinstance(found, Pair)
    assert (found.modified_instruction, found.rejected) == ("name two rivers in Spain", "Ebro.")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"name two rivers in France": ("", "stop")}, "answer_empty"),
        ({"name two rivers in France": ("Seine and", "length")}, "answer_cut_off"),
        ({"name two rivers in France": ("too long", "error")}, "answer_error"),
        ({**ANSWER, "modify": "name two rivers in Spain"}, "modify_no_instruction_mark"),
        ({**ANSWER, "modify": GOOD.replace("[Response]\n", "")}, "modify_no_response_mark"),
        ({**ANSWER, "modify": GOOD.replace("Spain", "France")}, "modified_is_same"),
        ({**ANSWER, "modify": GOOD.replace("Ebro and Tagus", "Seine and Loire")}, "same_answers"),
        ({**ANSWER, "modify": ("too long", "error")}, "modify_error"),
        (
            {**ANSWER, "modify": EXAMPLE["reply"].replace("old", "wide")},
            "modified_copies_example",
        ),
    ],
)
def test_drops_have_reasons(said, reason):
    found, _ = make(said, PairKnobs(), examples=(EXAMPLE,))
    assert isinstance(found, DroppedPair)
    assert found.reason == reason


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (("too long", "error"), "rejected_error"),
        (("Eb", "length"), "rejected_cut_off"),
        ((" ", "stop"), "rejected_empty"),
    ],
)
def test_drops_of_an_answer_asked_for_alone_have_reasons(other, reason):
    said = {**ANSWER, "modify": "name two rivers in Spain", "name two rivers in Spain": other}
    found, _ = make(said, PairKnobs(rejected_from="respond"))
    assert isinstance(found, DroppedPair)
    assert found.reason == reason


def test_a_short_answer_to_the_modified_instruction_is_dropped_too():
    said = {**ANSWER, "modify": GOOD.replace("Ebro and Tagus", "Ebro")}
    found, _ = make(said, PairKnobs(min_answer_chars=6))
    assert isinstance(found, DroppedPair)
    assert found.reason == "rejected_empty"


def test_what_the_system_said_is_said_again():
    system = {"role": "system", "content": "Answer in French."}
    said = {**ANSWER, "modify": " name two rivers in Spain", "name two rivers in Spain": "Ebro."}
    found, generator = make(said, PairKnobs(rejected_from="respond"), before=(system,))
    assert isinstance(found, Pair)
    assert [request.messages[0] for request in generator.asked] == [system] * 3


def test_an_answer_cut_off_may_be_kept_up_to_its_last_full_sentence():
    said = {"name two rivers in France": ("The Seine. And the Loi", "length"), "modify": GOOD}
    found, _ = make(said, PairKnobs(drop_cut_off=False))
    assert isinstance(found, Pair)
    assert found.chosen == "The Seine."
