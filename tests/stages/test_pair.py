"""An instruction becomes a pair, or is dropped with the reason that fits."""

from __future__ import annotations

import pytest

from ste_jax.config.schema import PairKnobs
from ste_jax.generation import Sampling
from ste_jax.prompts.render import Template
from ste_jax.records import DroppedPair, Instruction, Pair, instruction_id
from ste_jax.stages.pair import pair
from ste_jax.stages.roles import Role
from tests.stages.scripted import Scripted

GOOD = "[Modified Instruction]\nname two rivers in Spain\n[Response]\nEbro and Tagus"
EXAMPLE = {
    "instruction": "how tall is the tower",
    "answer": "90 metres",
    "reply": "[Modified Instruction]\nhow old is the big tower\n[Response]\n90 years",
}


def make(said, knobs, start="", examples=(), before=(), cap=32, **more):
    sampling = Sampling(max_new_tokens=64)
    respond = Role(
        name="respond",
        template=Template(name="r", user="{instruction}"),
        sampling=Sampling(max_new_tokens=cap),
        key=1,
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
    ((_, found),) = pair([row], generator, respond, modify, knobs, **more)
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


def test_both_answers_have_one_kind_of_line_break():
    for end in ("\r\n", "\r"):
        reply = GOOD.replace("Ebro and", "Ebro\nand").replace("\n", "\r\n")
        said = {"name two rivers in France": f"Seine{end}and Loire", "modify": reply}
        found, _ = make(said, PairKnobs())
        assert isinstance(found, Pair)
        assert (found.chosen, found.rejected) == ("Seine\nand Loire", "Ebro\nand Tagus")


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
        ({"name two rivers in France": ("no luck", "error")}, "answer_error"),
        ({"name two rivers in France": ("4000 tokens", "too_long")}, "answer_too_long"),
        ({**ANSWER, "modify": ("4000 tokens", "too_long")}, "modify_too_long"),
        ({**ANSWER, "modify": (GOOD, "length")}, "modify_cut_off"),
        ({**ANSWER, "modify": "name two rivers in Spain"}, "modify_no_instruction_mark"),
        ({**ANSWER, "modify": GOOD.replace("[Response]\n", "")}, "modify_no_response_mark"),
        ({**ANSWER, "modify": GOOD.replace("Spain", "France")}, "modified_is_same"),
        ({**ANSWER, "modify": GOOD.replace("Ebro and Tagus", "Seine and Loire")}, "same_answers"),
        ({**ANSWER, "modify": ("no luck", "error")}, "modify_error"),
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
        (("no luck", "error"), "rejected_error"),
        (("4000 tokens", "too_long"), "rejected_too_long"),
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


# ---------------------------------------------------------------------------------------------
# One cap for both answers. A token is a word here, and a turn ends with one more.

WORDS_ = "one two three four five six seven eight nine ten"


def words(number):
    return " ".join(WORDS_.split()[:number])


def count(text):
    return len(text.split())


def both(chosen, rejected, knobs, ended="stop"):
    """A pair of these answers, of at most 5 words and the end of the turn."""
    reply = f"[Modified Instruction]\nname two rivers in Spain\n[Response]\n{rejected}"
    said = {"name two rivers in France": chosen, "modify": (reply, ended)}
    return make(said, knobs, cap=6, count_tokens=count)[0]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (5, 4, ""),
        (4, 5, ""),
        (6, 4, "answer_cut_off"),
        (4, 6, "rejected_cut_off"),
        (9, 9, "answer_cut_off"),
    ],
)
def test_both_answers_have_one_cap(chosen, rejected, reason):
    found = both(words(chosen), words(rejected), PairKnobs())
    assert getattr(found, "reason", "") == reason


@pytest.mark.parametrize("other", [3, 5, 6, 8, 10])
def test_the_same_text_has_the_same_fate_as_either_answer(other):
    """Whether it is chosen, or rejected in the same reply, or rejected and asked for alone."""
    text = f"A. {words(other)}"
    for keep in (False, True):
        knobs = PairKnobs(drop_cut_off=not keep)
        chosen, rejected = both(text, "x", knobs), both("x", text, knobs)
        said = {
            "name two rivers in France": "x",
            "modify": "[Modified Instruction]\nname two rivers in Spain",
            "name two rivers in Spain": text,
        }
        alone = PairKnobs(rejected_from="respond", drop_cut_off=not keep)
        third, _ = make(said, alone, cap=6, count_tokens=count)
        fates = [
            getattr(chosen, "chosen", "dropped"),
            getattr(rejected, "rejected", "dropped"),
            getattr(third, "rejected", "dropped"),
        ]
        whole = other + 1 <= 5
        assert fates == [text if whole else "A." if keep else "dropped"] * 3


def test_without_a_full_sentence_both_are_cut_back_to_the_cap():
    knobs = PairKnobs(drop_cut_off=False)
    assert both(words(9), "x", knobs).chosen == words(5)
    assert both("x", words(9), knobs).rejected == words(5)


def test_a_reply_cut_off_in_its_answer_is_judged_by_the_answer():
    """Where the answer has come to its cap it was too long; else the instruction took its room."""
    assert both("x", words(8), PairKnobs(), "length").reason == "rejected_cut_off"
    assert both("x", words(3), PairKnobs(), "length").reason == "modify_cut_off"
    kept = PairKnobs(drop_cut_off=False)
    assert both("x", f"A. {words(8)}", kept, "length").rejected == "A."
    assert both("x", words(3), kept, "length").reason == "modify_cut_off"


def test_a_closing_mark_does_not_mark_the_rejected_answer():
    found = both("x", "Ebro\n[End of Response]", PairKnobs())
    assert (found.rejected, found.modified_instruction) == ("Ebro", "name two rivers in Spain")
