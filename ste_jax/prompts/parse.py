"""What did the model say: which verdict, which category, which difficulty, which new instruction?

Every parser is a pure function of the text (and of why it ended). It never raises and never
guesses: it gives the value or the kind of failure, so that failures can be counted by kind.

Thoughts (`ste_jax.prompts.thoughts`) are passed over by all of them; where a text ends in its
thoughts, nothing was said. A verdict is the judge's own. Text that the judge quotes from an answer,
or shows as code, may hold a mark too, and that mark is not a verdict. `ste_jax.prompts.quoting`
works out what is quoted.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ste_jax.prompts.markdown import lines
from ste_jax.prompts.quotation_marks import PAIRS
from ste_jax.prompts.quoting import quoted, readable
from ste_jax.prompts.thoughts import split

VerdictFailure = Literal["no_verdict", "conflict", "cut_off"]
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
# Verdicts


class Verdict(NamedTuple):
    """The judge's own verdict as printed, or why there is none."""

    verdict: Literal["A", "B", "tie"] | None
    failure: VerdictFailure | None


_MARK = re.compile(r"(?<!\[)\[\[(A|B|C|tie)\]\](?!\])")
_MEANING: dict[str, Literal["A", "B", "tie"]] = {"A": "A", "B": "B", "C": "tie", "tie": "tie"}


def parse_verdict(text: str, finish_reason: str = "stop") -> Verdict:
    """The judge's own verdict, if all of its own verdict marks agree.

    A verdict mark is one of `[[A]]`, `[[B]]`, `[[C]]` and `[[tie]]`, exactly so spelled; the last
    two both mean "tie". The judge's own are those outside its thoughts, quotations (in the marks of
    any language, over several paragraphs too), block quotes and code (inline, fenced, indented, or
    after a fence that is never closed), HTML's among them; and one that stands alone on the last
    line, even in quotation marks or backticks, for some prompts ask for `"[[A]]"`. Of a text that
    was cut off (`finish_reason` "length") a mark counts only if it stands alone on its line: what
    was to follow might have taken it back. Emphasis, a heading's or a list's mark and a full stop
    leave a mark alone.

    Two different verdicts of the judge's own are a "conflict"; none at all is "no_verdict", or
    "cut_off" where the text was. Linear in the text.
    """
    parts = split(text)
    own = set() if parts.open else _own_verdicts(readable(parts.said), finish_reason == "length")
    if len(own) > 1:
        return Verdict(None, "conflict")
    if own:
        return Verdict(own.pop(), None)
    return Verdict(None, "cut_off" if finish_reason == "length" else "no_verdict")


def lines_of_verdict(text: str) -> list[int]:
    """Where the lines of `text` end that hold a verdict mark of its own and nothing else, in order.

    Marks are told from the end: thoughts are before them, or else the places are wrong.
    """
    said = readable(split(text).said)
    found = _own_marks(said, True)
    behind = sum(1 for _ in _MARK.finditer(said))
    line_ends = [end for _, end in lines(text)]
    starts = [mark.start() for mark in _MARK.finditer(text)][-behind:] if behind else []
    return [line_ends[bisect_left(line_ends, starts[n])] for n, _ in found if n < len(starts)]


def _own_verdicts(text: str, cut_off: bool) -> set[Literal["A", "B", "tie"]]:
    return {_MEANING[letters] for _, letters in _own_marks(text, cut_off)}


def _own_marks(text: str, cut_off: bool) -> list[tuple[int, str]]:
    """The judge's own among the verdict marks of a text: which one each is, and what it says."""
    if not _MARK.search(text):
        return []
    hidden = quoted(text, _MARK)
    line_ends = [end for _, end in lines(text)]
    last = len(text.rstrip())
    own = []
    for n, mark in enumerate(_MARK.finditer(text)):
        row = bisect_left(line_ends, mark.end())
        start = line_ends[row - 1] + 1 if row else 0
        alone = _alone(text, start, mark.span(), line_ends[row])
        ends = alone and line_ends[row] >= last and not hidden.around[mark.start()]
        if (ends or not hidden.anyhow[mark.start()]) and (alone or not cut_off):
            own.append((n, mark[1]))
    return own


_BESIDE = 60
"""More characters beside a mark on its line are more than its decoration."""
_TAGS = r"(?:</?(?:b|strong|em|i|u|p|div|center|h[1-6])>)*+"
_BEFORE = re.compile(
    rf"\s*+(?:(?:#{{1,6}}|[-*+]|\d{{1,9}}[.)])\s++)*+{_TAGS}[*_~]*+([^\w\s*_~(\[<]*|<(?:code|q)>)[*_~]*"
)
_AFTER = re.compile(
    rf"[*_~]*+[.,;:!?。！]?([^\w\s*_~.,;:!?。！)\]<]*|</(?:code|q)>)[*_~]*+{_TAGS}[.!。]?[*_~]*+\s*"
)
_AROUND = frozenset({("", ""), ("<code>", "</code>"), ("<q>", "</q>"), *PAIRS})


def _alone(text: str, start: int, mark: tuple[int, int], end: int) -> bool:
    """Whether a mark has its line, from `start` to `end`, to itself, decorated or quoted."""
    if mark[0] - start > _BESIDE or end - mark[1] > _BESIDE:
        return False
    before = _BEFORE.fullmatch(text, start, mark[0])
    after = _AFTER.fullmatch(text, mark[1], end)
    return bool(before and after and (before[1], after[1]) in _AROUND)


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
    numbers of the first line that has any count, and there must be one number only. Naming the
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
    later lines, is no part of the text. Each mark stands once, the instruction
    first, and no section is empty. `started` is the forced start of the turn: the model's `text`
    continues it, so marks in it count. A reply that ended by "length" is "cut_off". `lone` is that
    of `thoughts.split`.

    Without `with_response` the response section is not asked for and dropped if it comes, and a
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
"""Closing marks: in brackets, or in words, on a line of their own, decorated or not; `### End ###`;
and in brackets at the end of a line, `[END]` only at the end of the text."""


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
