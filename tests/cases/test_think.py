"""What a model thinks is no answer, no instruction, no category and no verdict."""

from __future__ import annotations

from typing import Any

import pytest

from ste_jax.generation import Completion
from ste_jax.prompts.parse import Modified, parse_category, parse_difficulty, parse_modified
from ste_jax.prompts.thoughts import said, split, whole, without_put_back
from ste_jax.tasks.pairwise import parse_verdict

NAMES = ("coding", "mathematics", "reasoning", "other")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("<think>\nI lean to [[A]]. But its sum is wrong.\n</think>\n\nB is right.\n\n[[B]]", "B"),
        ("A seems fine: [[A]]? No.\n</think>\n\nB is right. [[B]]", "B"),
        ("<think>\nProbably [[A]].\n</think>\n\nI cannot decide.", None),
        ("<think>\nMaybe [[A]], let me check the sum once more", None),
        ("<think>\nMaybe\n\n[[A]]\n", None),
        ("<think>A ends with `</think>` oddly. [[A]]</think>[[B]]", "B"),
        ("<think>\nA ends with </think> oddly. [[A]]\n</think>\n[[B]]", "B"),
        ("<think>\n```\nleft open [[A]]\n</think>\n\n[[B]]", "B"),
        ("<think>\n<think>\n[[A]]\n</think>\n[[A]]\n</think>\n[[B]]", "B"),
        ("<think> [[A]] </think> [[B]]", "B"),
        ("<think></think>[[B]]", "B"),
        ("[THINK]maybe [[A]][/THINK][[B]]", "B"),
        ("<thinking>[[A]]</thinking>\n\n[[B]]", "B"),
        ("<reasoning>[[A]] perhaps</reasoning>\n<answer>[[B]]</answer>", "B"),
        ("<|begin_of_thought|>\n[[A]]\n<|end_of_thought|>\n[[B]]", "B"),
        (
            "<|channel|>analysis<|message|>maybe [[A]]<|end|><|start|>assistant"
            "<|channel|>final<|message|>[[B]]",
            "B",
        ),
        ("Plan:\n```\nmaybe [[A]]\n</think>\n\n[[B]]", "B"),
        ("so [[A]] then </think>[[B]]", "B"),
        ("so [[A]] with </think> in mind, hm </think> [[B]]", "B"),
        ("Answer A writes `<think>[[A]]` and no more. [[B]]", "B"),
        ("Answer A puts nothing between <think> and </think>. [[B]]", "B"),
    ],
)
def test_a_verdict_counts_after_the_thoughts(text: str, verdict: str | None) -> None:
    assert parse_verdict(text).verdict == verdict
    assert parse_verdict(text.replace("\n", "\r\n")).verdict == verdict


def test_a_text_that_ends_in_its_thoughts_is_cut_off() -> None:
    assert parse_verdict("<think>\n[[A]]\n", "length") == (None, "cut_off")
    assert parse_category("<think>\ncoding", NAMES) == (None, "cut_off_in_thoughts")
    assert parse_difficulty("<think>\n3") == (None, "cut_off_in_thoughts")
    for reason in ("stop", "length"):
        found = parse_modified("<think>\nx", with_response=False, finish_reason=reason)
        assert found == (None, "cut_off_in_thoughts")


def test_a_label_counts_after_the_thoughts() -> None:
    thoughts = "<think>\nIs it reasoning or coding? Level 2 or 3?\n\nDifficulty: 2?\n</think>\n\n"
    assert parse_category(f"{thoughts}mathematics", NAMES) == ("mathematics", None)
    assert parse_difficulty(f"{thoughts}Difficulty: 4") == (4, None)


@pytest.mark.parametrize("opening", ["<think>\n", ""])
def test_a_modified_instruction_counts_after_the_thoughts(opening: str) -> None:
    thoughts = f"{opening}I shall write\n[Modified Instruction]\nName one.\n\nDone.\n</think>\n\n"
    marked = "[Modified Instruction]\nName a lake.\n[Response]\nSaimaa."
    assert parse_modified(thoughts + marked, with_response=True) == (
        Modified("Name a lake.", "Saimaa."),
        None,
    )
    assert parse_modified(f"{thoughts}Name a lake.", with_response=False) == (
        Modified("Name a lake.", None),
        None,
    )


@pytest.mark.parametrize(
    "text",
    [
        "R1 puts its thoughts between <think> and </think>, then it answers.",
        'Split at the mark: `text.split("</think>")[-1]`. Then strip it.',
        "Split at the mark:\n\n```python\nhead, tail = text.split('</think>')\n```\n\nThat is all.",
        "```\n<think>\nhm\n</think>\n```",
        "The mark `</think>` ends thoughts.",
        'The mark "</think>" ends thoughts.',
        "<order>\n<reasoning>late</reasoning>\n<thought>none</thought>\n</order>",
        "No marks at all.",
        "It shows:\n\n```\n<think>\nhm\n</think>\n\nYes.\n```\n\nThat is all.",
        "At the end stands </think>, and then it answers.",
        'It says "stop at </think> at once" to us.',
    ],
)
def test_an_answer_about_the_marks_is_an_answer(text: str) -> None:
    assert split(text) == (text, "", False)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("<think>\n\n</think>\n\nYes.", "Yes."),
        ("\n\n<think>a</think>\n\nYes.", "Yes."),
        ("<THINK>\na\n</Think>\nYes.", "Yes."),
        ("So it is.</think>Yes.", "Yes."),
        ("so it is\n</think>\n\nYes, `</think>` ends it.", "Yes, `</think>` ends it."),
        ("Sure.\n<think>\na\n</think>\nYes.", "Sure.\n\nYes."),
        ("Sure. <think>a</think> Yes.", "Sure.  Yes."),
        ("<think>a</think>b\n</think>\nYes.", "Yes."),
        ("<thought>\na\n</thought>\nYes.", "Yes."),
        ("<think>\n```\na\n</think>\n\n```\nYes.\n```", "```\nYes.\n```"),
        ("<think>\n```\n</think>\n```\na\n</think>\n\nYes.", "Yes."),
        ("Plan:\n```py\nprint(1)\n</think>\n\nYes.", "Yes."),
        ("Plan:\n```py\nx\n</think>\n\nSo:\n```py\ny\n```", "So:\n```py\ny\n```"),
        ("Plan:\n```\na\n```\n```\nb\n</think>\n\nYes.", "Yes."),
        ("Plan:\n```\n<think>\na\n</think>\n</think>\n\nYes.", "Yes."),
        ("Plan:\n```\n<think></think>\n```\nand\n```\nb\n</think>\n\nYes.", "Yes."),
        ("so, I answer No </think> Yes.", "Yes."),
        ("a\n</think>\n\nIt ends with </think> there.", "It ends with </think> there."),
        ("a\n</think>\n\nSo:\n```\n</think>\n```\nb", "So:\n```\n</think>\n```\nb"),
    ],
)
def test_what_is_said(text: str, meant: str) -> None:
    parts = split(text)
    assert (parts.said, parts.open) == (meant, False)


def completion(text: str, **more: Any) -> Completion:
    return Completion(
        request_id="r", sample=0, text=text, token_ids=(), finish_reason="stop", **more
    )


def test_a_model_without_thoughts_writes_a_closing_mark_as_text() -> None:
    text = "Write:\n</think>\nto end."
    assert said(completion(text)).said == "to end."
    assert said(completion(text, thinks=False)) == (text, "", False)
    assert said(completion(f"<think>\na\n</think>\n\n{text}", thinks=False)).said == text


def test_marks_in_a_servers_thoughts_end_nothing() -> None:
    for inner in ("a\n</think>\nb [[A]]", "a </think> b [[A]]", "```\n</think>\n```\n[[A]]"):
        text = whole(completion("It is so. [[B]]", thoughts=inner))
        assert split(text).said == "It is so. [[B]]"
        assert parse_verdict(text) == ("B", None)
        assert parse_verdict(whole(completion("Hm.", thoughts=inner))).verdict is None


def test_the_mark_that_was_put_back_can_be_taken_off() -> None:
    for text in ("a\n</think>\n\nb", "\na[/THINK]b"):
        assert without_put_back(whole(completion(text, thinking=True))) == text
    assert without_put_back("<think>a") == "<think>a"
