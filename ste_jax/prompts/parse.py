"""What did the model say: which verdict, which category, which difficulty, which new instruction?

Every parser is a pure function of the text (and of why it ended). It never raises and never
guesses: it gives the value or the kind of failure, so that failures can be counted by kind.

A verdict is the judge's own. Text that the judge quotes from an answer, or shows as code, may hold
a mark too, and that mark is not a verdict. `ste_jax.prompts.quoting` works out what is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ste_jax.prompts.quoting import blocks, in_spans, quoted_spans

VerdictFailure = Literal["no_verdict", "conflict", "cut_off"]
CategoryFailure = Literal["no_category", "conflict"]
DifficultyFailure = Literal["no_difficulty", "conflict"]
ModifiedFailure = Literal[
    "cut_off",
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
# Verdicts


class Verdict(NamedTuple):
    """The judge's own verdict as printed, or why there is none."""

    verdict: Literal["A", "B", "tie"] | None
    failure: VerdictFailure | None


_MARK = re.compile(r"(?<!\[)\[\[(A|B|C|tie)\]\](?!\])")
_MEANING: dict[str, Literal["A", "B", "tie"]] = {"A": "A", "B": "B", "C": "tie", "tie": "tie"}


def parse_verdict(text: str, finish_reason: str = "stop") -> Verdict:
    """The verdict of the last line of `text` that has one, if no different one stands beside it.

    A verdict is one of the marks `[[A]]`, `[[B]]`, `[[C]]` and `[[tie]]`, exactly so spelled; the
    last two both mean "tie". A mark inside quotation marks, block quotes or code (inline, fenced,
    or after a fence that is never closed) is not the judge's own and is passed over. Two different
    verdicts of the judge's own are a "conflict"; none at all is "no_verdict", or "cut_off" where
    `finish_reason` is "length".
    """
    own: set[Literal["A", "B", "tie"]] = set()
    for block in blocks(text):
        quoted = quoted_spans(block, _MARK)
        for mark in _MARK.finditer(block):
            if not in_spans(mark.start(), quoted):
                own.add(_MEANING[mark.group(1)])
    if len(own) > 1:
        return Verdict(None, "conflict")
    if own:
        return Verdict(own.pop(), None)
    return Verdict(None, "cut_off" if finish_reason == "length" else "no_verdict")


# ---------------------------------------------------------------------------------------------
# Categories and difficulties


def parse_category(
    text: str, categories: Sequence[str]
) -> tuple[str | None, CategoryFailure | None]:
    """The one of `categories` that `text` names as a word of its own, whatever its case.

    The first line decides alone if it names exactly one; else the whole text must. A name inside a
    longer name of the list ("writing" in "creative writing") does not count for itself.
    """
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
    numbers of the first line that has any count, and there must be one number only. Naming the
    scale ("from 1 to 5") is no rating.
    """
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
    text: str, *, with_response: bool, started: str = "", finish_reason: str = "stop"
) -> tuple[Modified | None, ModifiedFailure | None]:
    """The sections of a reply to the `modify` role: a new instruction and, perhaps, its answer.

    A section begins after its mark (`INSTRUCTION_MARK`, `RESPONSE_MARK`; any case) on a line of its
    own, emphasized or not, and ends before the next mark. Each mark stands once, the instruction
    first, and no section is empty. `started` is the forced start of the turn: the model's `text`
    continues it, so marks in it count. A reply that ended by "length" is "cut_off".

    Without `with_response` the response section is not asked for and dropped if it comes, and a
    reply without any mark is read as an instruction followed, perhaps, by more paragraphs.
    """
    if finish_reason == "length":
        return None, "cut_off"
    reply = (started + text).replace("\r\n", "\n")
    marks = list(_SECTION.finditer(reply))
    instructions = [mark for mark in marks if mark.group(1)]
    responses = [mark for mark in marks if not mark.group(1)]
    failure = _misplaced(instructions, responses, with_response)
    if failure:
        return None, failure
    if instructions:
        end = responses[0].start() if responses else len(reply)
        instruction = reply[instructions[0].end() : end].strip()
    else:
        instruction = re.split(r"\n\s*\n", reply.strip(), maxsplit=1)[0].strip()
    if not instruction:
        return None, "empty_instruction"
    if not with_response:
        return Modified(instruction, None), None
    response = reply[responses[0].end() :].strip()
    return (Modified(instruction, response), None) if response else (None, "empty_response")


def _misplaced(
    instructions: Sequence[re.Match[str]], responses: Sequence[re.Match[str]], with_response: bool
) -> ModifiedFailure | None:
    """What is wrong with the number and the order of the section marks, if anything."""
    if not instructions and (with_response or responses):
        return "no_instruction_mark"
    if not responses and with_response:
        return "no_response_mark"
    if len(instructions) > 1 or len(responses) > 1:
        return "repeated_mark"
    if responses and responses[0].start() < instructions[0].start():
        return "wrong_order"
    return None
