"""What did the model say: which category, which difficulty, which new instruction?

Every parser is a pure function of the text (and of why it ended). It never raises and never
guesses: it gives the value or the kind of failure, so that failures can be counted by kind.

All of them pass over thoughts (`ste_jax.prompts.thoughts`); a text that ends in its thoughts says
nothing. Verdicts are read by each task (`ste_jax.tasks`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ste_jax.prompts.thoughts import split

CategoryFailure = Literal["no_category", "conflict", "cut_off_in_thoughts"]
DifficultyFailure = Literal["no_difficulty", "conflict", "cut_off_in_thoughts"]
ModifiedFailure = Literal[
    "cut_off",
    "cut_off_in_thoughts",
    "no_instruction_mark",
    "no_response_mark",
    "repeated_mark",
    "wrong_order",
    "empty_instruction",
    "empty_response",
]

INSTRUCTION_MARK = "[Modified Instruction]"
RESPONSE_MARK = "[Response]"


# ---------------------------------------------------------------------------------------------
# Categories and difficulties


def parse_category(
    text: str, categories: Sequence[str]
) -> tuple[str | None, CategoryFailure | None]:
    """The one of `categories` that `text` names as a word of its own, whatever its case.

    The first line decides alone if it names exactly one; else the whole text must. A name inside a
    longer name of the list ("writing" in "creative writing") does not count for itself.
    """
    text, _, in_thoughts = split(text)
    if in_thoughts:
        return None, "cut_off_in_thoughts"
    known = {" ".join(name.lower().split()): name for name in categories}
    spellings = sorted(known, key=len, reverse=True)
    names = "|".join(re.escape(spelling).replace(r"\ ", r"\s+") for spelling in spellings)
    # `[^\W_]` is a letter or digit: `_coding_` is an emphasized name, `non-coding` is another word.
    pattern = re.compile(rf"(?<![^\W_])(?<!\w-)(?:{names or '(?!)'})(?![^\W_])", re.IGNORECASE)

    def named(part: str) -> set[str]:
        found = (" ".join(match.group().lower().split()) for match in pattern.finditer(part))
        return {known[spelling] for spelling in found if spelling in known}

    found = named(_first_line(text)) or named(text)
    if len(found) == 1:
        return found.pop(), None
    return None, "conflict" if found else "no_category"


_ONE_TO_FIVE = r"(?<![\w.,/-])([1-5])"
_NUMBER_ENDS = r"(?!\w|[.,/]\d)"
_SCALE = re.compile(r"(?<!\w)1\s*(?:-|–|to|through)\s*5(?!\w)", re.IGNORECASE)
_RATED = (
    re.compile(rf"{_ONE_TO_FIVE}\s*(?:/|out\s+of)\s*5{_NUMBER_ENDS}", re.IGNORECASE),
    re.compile(rf"\bdifficulty\b[^\n\d]{{0,40}}?{_ONE_TO_FIVE}{_NUMBER_ENDS}", re.IGNORECASE),
)
_NUMBER = re.compile(r"(?<!\w)-?\d+(?:[.,/]\d+)*(?!\w)")


def parse_difficulty(text: str) -> tuple[int | None, DifficultyFailure | None]:
    """The difficulty from 1 to 5 that `text` gives.

    `Difficulty: 4`, `4/5` and `4 out of 5` are ratings wherever they stand. Without one, the
    numbers of the first line that has any are read, and there must be one number only. To name the
    scale ("from 1 to 5") is no rating.
    """
    text, _, in_thoughts = split(text)
    if in_thoughts:
        return None, "cut_off_in_thoughts"
    text = _SCALE.sub(" ", text)
    rated = {int(match.group(1)) for pattern in _RATED for match in pattern.finditer(text)}
    if not rated:
        lines = (_NUMBER.findall(line) for line in text.splitlines())
        numbers = set(next(filter(None, lines), ()))
        if numbers <= {"1", "2", "3", "4", "5"}:
            rated = {int(number) for number in numbers}
    if len(rated) == 1:
        return rated.pop(), None
    return None, "conflict" if rated else "no_difficulty"


def _first_line(text: str) -> str:
    """The first line that is not blank, or nothing."""
    return next((line for line in text.splitlines() if line.strip()), "")


# ---------------------------------------------------------------------------------------------
# Modified instructions


class Modified(NamedTuple):
    """A modified instruction and, where it was asked for, the answer to it."""

    instruction: str
    response: str | None


_DECORATION = r"[ \t#*_>~:-]*"
_SECTION = re.compile(
    rf"^{_DECORATION}(?:({re.escape(INSTRUCTION_MARK)})|{re.escape(RESPONSE_MARK)}){_DECORATION}$",
    re.IGNORECASE | re.MULTILINE,
)


def parse_modified(
    text: str,
    *,
    with_response: bool,
    started: str = "",
    finish_reason: str = "stop",
    lone: bool = True,
) -> tuple[Modified | None, ModifiedFailure | None]:
    """The sections of a reply to the `modify` role: a new instruction and, perhaps, its answer.

    A section begins after its mark (`INSTRUCTION_MARK`, `RESPONSE_MARK`; any case) on a line of its
    own, emphasized or not, and ends before the next mark, or where the model closes it
    (`[/Response]`, `[End of Response]`, `</response>`): a closing mark, and what comes after it on
    later lines, is no part of the text. Each mark must stand once, the instruction first, and no
    section may be empty. `started` is the forced start of the turn: the model's `text` continues
    it, so marks in it count. A reply that ended by "length" is "cut_off". `lone` is as in
    `thoughts.split`.

    Without `with_response` a response section is not needed and is dropped if there is one, and a
    reply without any mark is read as an instruction followed, perhaps, by more paragraphs.
    """
    reply, _, in_thoughts = split((started + text).replace("\r\n", "\n"), lone=lone)
    if in_thoughts:
        return None, "cut_off_in_thoughts"
    if finish_reason == "length":
        return None, "cut_off"
    marks = list(_SECTION.finditer(reply))
    instructions = [mark for mark in marks if mark.group(1)]
    responses = [mark for mark in marks if not mark.group(1)]
    failure = _misplaced(instructions, responses, with_response)
    if failure:
        return None, failure
    if instructions:
        end = responses[0].start() if responses else len(reply)
        instruction = _section(reply[instructions[0].end() : end])
    else:
        instruction = _section(re.split(r"\n\s*\n", reply.strip(), maxsplit=1)[0])
    if not instruction:
        return None, "empty_instruction"
    if not with_response:
        return Modified(instruction, None), None
    response = _section(reply[responses[0].end() :])
    return (Modified(instruction, response), None) if response else (None, "empty_response")


_NAME = (
    r"(?:(?:the|your|modified|new|instruction|assistant)(?:['’]s)?[\s_-]{1,3}){0,4}"
    r"(?:instruction|response|answer)s?"
)
_SHORT = r"(?:resp|instr|ans)"
_ENDED = rf"(?:the[\s_])?end(?:[\s_]of)?[\s_:-]{{1,3}}{_NAME}|{_NAME}[\s_:-]{{1,3}}ends?"
_OPEN, _SHUT = r"[\[<({|]{1,3}[ \t]{0,3}", r"[ \t]{0,3}[\])>}|]{1,3}"
_NAMED = (
    rf"{_OPEN}(?:/[ \t]*(?:{_NAME}|{_SHORT})|{_ENDED}){_SHUT}|={{2,9}}[ ]?(?:{_ENDED})[ ]?={{2,9}}"
)
_BARE = rf"{_OPEN}(?:/|(?:the[ ]+)?end){_SHUT}"
_APART = (  # on a line of their own, whatever decorates it
    rf"{_NAMED}|{_BARE}|\[(?:{_NAME}|{_SHORT})[ \t]*/\]|(?:the[ ]+)?end[ ]+of[ ]+{_NAME}"
)
_CLOSING = (
    re.compile(rf"^[ \t#*_>~:`-]*(?:{_APART})[.]?[ \t#*_>~:`-]*$", re.IGNORECASE | re.MULTILINE),
    re.compile(
        r"^[ \t]*(?P<rule>[#=~-]{2,9})[ ]*(?:the[ ]+)?end[ ]*(?P=rule)[ \t]*$",
        re.IGNORECASE | re.MULTILINE,
    ),
) + tuple(
    re.compile(
        rf"(?P<fence>[*_`]{{0,3}})(?:{mark})[.]?(?P=fence)[ \t]*{end}", re.IGNORECASE | re.MULTILINE
    )
    for mark, end in ((_NAMED, "$"), (_BARE, r"\s*\Z"))
)
"""Matches closing marks: in brackets or in words on a line of their own, decorated or not;
`### End ###`; in brackets at the end of a line; and `[END]`, but only at the end of the text."""


def _section(text: str) -> str:
    """A section's text, up to where the model closes it. A tag that the text itself opens is part
    of the text."""
    for mark in _CLOSING:
        for closing in mark.finditer(text):
            if not _opened(text, closing):
                text = re.sub(r"\n[ \t]*[-*_]{3,}\Z", "", text[: closing.start()].rstrip())
                break
    return text.strip()


def _opened(text: str, closing: re.Match[str]) -> bool:
    tag = re.search(r"([\[<])\s*/\s*([a-z]+)", closing[0], re.IGNORECASE)
    if tag is None:
        return False
    opening = re.compile(rf"{re.escape(tag[1])}\s*{tag[2]}\b", re.IGNORECASE)
    return opening.search(text, 0, closing.start()) is not None


def _misplaced(
    instructions: Sequence[re.Match[str]], responses: Sequence[re.Match[str]], with_response: bool
) -> ModifiedFailure | None:
    """The fault in the number or the order of the section marks; None if there is none."""
    if not instructions and (with_response or responses):
        return "no_instruction_mark"
    if not responses and with_response:
        return "no_response_mark"
    if len(instructions) > 1 or len(responses) > 1:
        return "repeated_mark"
    if responses and responses[0].start() < instructions[0].start():
        return "wrong_order"
    return None
