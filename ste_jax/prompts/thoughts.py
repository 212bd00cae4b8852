"""Which part of a completion is the model's thoughts, and which part is what it says?

Models that think write their thoughts first and between marks: `<think>` and `</think>`, `[THINK]`
and `[/THINK]`, and others like them. Where the chat template itself writes the opening mark, a
completion begins inside its thoughts and holds only the closing mark. Servers may give thoughts
apart from the text.

Only what is said counts as an answer, an instruction, a category or a verdict. Every stage reads a
completion through `said` or a stored text through `split`; nothing else looks for thoughts.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ste_jax.generation import Completion
from ste_jax.prompts.markdown import inline_code, layout, lines
from ste_jax.prompts.quoting import quoted

MARKS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM-4.5, Magistral Small 1.0, Phi-4-reasoning
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE-Deep, Marco-o1
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<longcat_think>", "</longcat_think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
)
"""The opening and the closing mark of thoughts, as chat templates and models write them."""
OPENING, CLOSING = MARKS[0]

TOKENS = frozenset([*(mark for pair in MARKS for mark in pair), "<|channel|>", "<|message|>"])
"""Marks that decoding must keep in a text: without them thoughts would run into what is said."""

_KINDS = {mark.lower(): kind for kind, pair in enumerate(MARKS) for mark in pair}
_ANY = re.compile("|".join(map(re.escape, _KINDS)), re.IGNORECASE)
_OPENS = frozenset(opening.lower() for opening, _ in MARKS)
_WORDS = frozenset(_KINDS[name] for name in ("<thought>", "<reasoning>"))
"""Kinds of marks that data may hold as XML elements: they begin thoughts only at a text's start."""


class Parts(NamedTuple):
    """A text taken apart."""

    said: str
    """The text outside the thoughts."""
    thoughts: str
    open: bool
    """Whether the text ends inside its thoughts, before the model said anything."""


def said(completion: Completion, start: str = "") -> Parts:
    """What a completion says, and its thoughts. `start` is the forced start of the turn, which the
    text continues."""
    if not completion.thoughts:
        return split(whole(completion, start), lone=completion.thinks)
    if not _server_ended(completion):
        return Parts("", completion.thoughts, True)
    return split(start + completion.text)._replace(thoughts=completion.thoughts)


def whole(completion: Completion, start: str = "") -> str:
    """All of the assistant's turn as one text, in which `split` finds the thoughts: with the mark
    that the template wrote, and with the thoughts that a server gave apart (marks inside these are
    written as code, so that they end nothing)."""
    begins = _ANY.match(completion.text.lstrip())  # on a line of its own, whatever was forced
    text = f"{start.rstrip()}\n{completion.text}" if start and begins else start + completion.text
    if completion.thoughts:
        rest = f"\n{CLOSING}\n\n{text}" if _server_ended(completion) else ""
        return f"{OPENING}\n{_ANY.sub(_as_code, completion.thoughts.strip())}{rest}"
    if completion.thinking:
        return f"{MARKS[_closed_as(text)][0]}\n{text}"
    return text


def _as_code(mark: re.Match[str]) -> str:
    return f"`{mark[0]}`"


def without_put_back(text: str) -> str:
    """A `whole` text without the mark at its beginning that the chat template wrote, if any."""
    begun = _ANY.match(text)
    put_back = begun and begun[0].lower() in _OPENS and text[begun.end() :].startswith("\n")
    return text[begun.end() + 1 :] if begun and put_back else text


def _server_ended(completion: Completion) -> bool:
    """Whether the thoughts that a server gave apart were finished."""
    return bool(completion.text.strip()) or completion.finish_reason != "length"


def _closed_as(text: str) -> int:
    """The kind of the first closing mark; the commonest kind where there is none."""
    found = [mark for mark in _marks(text) if not mark.opens] if holds_mark(text) else []
    sure = [mark for mark in found if not (mark.shown or mark.fenced or mark.named)]
    return (sure or found)[0].kind if found else 0


def left_open(text: str) -> str:
    """The opening mark of thoughts that no closing mark follows in `text`; empty if there is none.
    The text is a template's, so a mark counts whatever is around it."""
    last = ""
    for mark in _ANY.finditer(text):
        last = mark[0] if mark[0].lower() in _OPENS else ""
    return last


def closing_of(text: str) -> str:
    """The closing mark of the thoughts in which `text` ends; empty if it does not end in any."""
    parts, kind = _split(text)
    return f"\n{MARKS[kind][1]}\n\n" if parts.open else ""


def holds_mark(text: str) -> bool:
    """Whether `text` holds a mark of thoughts, opening or closing."""
    return _ANY.search(text) is not None


def pieces(text: str) -> list[str]:
    """`text` cut at its marks, which are every second piece."""
    return re.split(f"({_ANY.pattern})", text, flags=re.IGNORECASE)


# ---------------------------------------------------------------------------------------------
# A text that may hold thoughts


class _Mark(NamedTuple):
    """A mark where it stands in a text."""

    start: int
    end: int
    kind: int
    opens: bool
    shown: bool
    """Whether it is in inline code, or quoted by itself: then it begins and ends nothing."""
    fenced: bool
    """In fenced code."""
    unclosed: bool
    """Whether it is in fenced code that is never closed."""
    fence: int
    """The number of the piece of fenced code, closed or not, that it is in; 0 if none."""
    apart: bool
    """Whether it is at the start of a line."""
    alone: bool
    """Whether it has its line to itself."""
    named: bool
    """Whether it is a word of a sentence ("ends with </think>, then answers")."""


def split(text: str, *, lone: bool = True) -> Parts:
    """The thoughts in `text` and what is said outside them.

    Thoughts begin at an opening mark at the start of a line (or after a sentence, if they end), and
    end at the closing mark of the same kind. A closing mark without an opening one ends thoughts
    that began before the text did: the template may have opened them. Marks that are shown as code,
    or quoted by themselves, or named in a sentence are text like any other; but where thoughts are
    known to be open, a mark in a sentence ends them if no better one does.

    Two more closing marks without an opening one end thoughts, since leaked thoughts are worse than
    an answer that is cut: a mark with its line to itself in fenced code, which thoughts often leave
    open; and a mark in a sentence. The latter is text if a mark of its kind was named before, if
    punctuation such as a comma follows, if it is quoted, or after thoughts. Without `lone` (the
    model's template is known to have no thoughts) a closing mark without an opening one ends none.
    The time is linear in the text.
    """
    return _split(text, lone)[0]


def _split(text: str, lone: bool = True) -> tuple[Parts, int]:
    """What `split` gives, and the kind of the thoughts that are open at the end."""
    if not holds_mark(text):
        return Parts(text, "", False), 0
    marks = _marks(text)
    closings = _next_closings(marks)
    spoken: list[str] = []
    thought: list[str] = []
    closes = _Closes(text)
    first = len(text) - len(text.lstrip())
    place = index = 0
    while index < len(marks):
        mark = marks[index]
        plain = mark.shown or mark.fenced or mark.unclosed
        if not mark.opens:
            if closes.thoughts(mark) and lone:
                thought += [*spoken, text[place : mark.start]]
                spoken, place = [], mark.end if mark.apart else _past_space(text, mark.end)
                closes.ended = True
            index += 1
            continue
        closing = closings[index]
        begins = mark.apart or (not mark.named and closing is not None)
        if mark.kind in _WORDS and not plain and mark.start > first:
            begins = False
        if plain or not begins:
            closes.opened(mark)
            index += 1
            continue
        spoken.append(text[place : mark.start])
        if closing is None:
            return Parts(_trimmed(spoken), text[mark.end :].strip(), True), mark.kind
        thought.append(text[mark.end : marks[closing].start])
        place, index = marks[closing].end, closing + 1
        closes.ended = True
    spoken.append(text[place:])
    return Parts(_trimmed(spoken), "\n".join(thought).strip(), False), 0


class _Closes:
    """Finds the closing marks that end thoughts that no mark began; it takes the marks in order."""

    def __init__(self, text: str) -> None:
        self.ended = False
        """Whether thoughts have ended before."""
        self._text = text
        self._open: Counter[tuple[int, int]] = Counter()
        """How many XML elements of the data are open, outside code and in each fence."""
        self._named: Counter[int] = Counter()
        self._quoted: bytearray | None = None

    def opened(self, mark: _Mark) -> None:
        """Takes an opening mark that begins no thoughts."""
        if mark.fence or (mark.kind in _WORDS and not mark.shown):
            self._open[mark.kind, mark.fence] += 1
        elif not mark.shown:
            self._named[mark.kind] += 1

    def thoughts(self, mark: _Mark) -> bool:
        """Takes a closing mark; returns whether it ends thoughts."""
        if mark.shown and not mark.fence:
            return False
        if self._open[mark.kind, mark.fence]:
            self._open[mark.kind, mark.fence] -= 1
            return False
        if mark.fence:
            return mark.alone and (mark.unclosed or not self.ended)
        if not mark.named:
            return True
        if self._named[mark.kind]:
            self._named[mark.kind] -= 1
            return False
        if self.ended or self._text[mark.end] in _GOES_ON:
            return False
        if self._quoted is None:
            self._quoted = quoted(self._text, _ANY).anyhow
        return not self._quoted[mark.start]


_GOES_ON = ",.;:!?)，。、；：！？）"
"""Matches what follows a mark that is a word of its sentence and does not precede an answer."""


def _trimmed(spoken: Sequence[str]) -> str:
    """The pieces joined, without blank lines around them: the first line's indent stays."""
    text = "".join(spoken).rstrip()
    blank = len(text) - len(text.lstrip())
    return text[text.rfind("\n", 0, blank) + 1 :]


def _next_closings(marks: Sequence[_Mark]) -> list[int | None]:
    """For each mark the closing mark of its kind that would end thoughts that begin there.

    It is the next one that is not named in a sentence; else the next; else the last one that has
    its line to itself in fenced code, since thoughts often leave a fence open, which then pairs
    with a fence of the answer.
    """
    closings: list[int | None] = [None] * len(marks)
    good: dict[int, int] = {}
    named: dict[int, int] = {}
    fenced: dict[int, int] = {}
    for index in range(len(marks) - 1, -1, -1):
        mark = marks[index]
        kind = mark.kind
        closings[index] = good.get(kind, named.get(kind, fenced.get(kind)))
        if mark.opens or mark.shown:
            continue
        if mark.fenced:
            if mark.alone:
                fenced.setdefault(kind, index)
        elif mark.named:
            named[kind] = index
        else:
            good[kind] = index
    return closings


def _marks(text: str) -> list[_Mark]:
    starts = [start for start, _ in lines(text)]
    found = layout(text)
    code = inline_code(text, found.blocks, bytearray(len(text)))
    marks: list[_Mark] = []
    fence = known = 0
    for match in _ANY.finditer(text):
        start, end = match.span()
        row = bisect_right(starts, start) - 1
        line_end = starts[row + 1] if row + 1 < len(starts) else len(text)
        before, after = _back(text, start, starts[row]), _ahead(text, end, line_end)
        apart, ends = before < starts[row], after == line_end
        in_sentence = not apart and before < start - 1 and text[before] not in _SENTENCE_ENDS
        opens = match[0].lower() in _OPENS
        fenced = bool(found.fences[start] or found.open_fence[start])
        if fenced:
            same = found.open_fence if found.open_fence[start] else found.fences
            fence += not fence or same.find(0, known, start) != -1
        known = start
        marks.append(
            _Mark(
                start=start,
                end=end,
                kind=_KINDS[match[0].lower()],
                opens=opens,
                shown=not (apart and ends) and (bool(code[start]) or _hugged(text, start, end)),
                fenced=bool(found.fences[start]),
                unclosed=bool(found.open_fence[start]),
                fence=fence if fenced else 0,
                apart=apart,
                alone=apart and ends,
                named=in_sentence and (opens or not ends),
            )
        )
    return marks


_SENTENCE_ENDS = ".!?…。！？)]}*_\"”»’'`"
_HUGS = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "„": "“", "«": "»", "「": "」", "(": ")"}


def _hugged(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return bool(before) and _HUGS.get(before) == after


def _past_space(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t"):
        place += 1
    return place


def _back(text: str, place: int, line: int) -> int:
    """The place of the last character before `place`, on its line, that is no space."""
    place -= 1
    while place >= line and text[place].isspace():
        place -= 1
    return place


def _ahead(text: str, place: int, line_end: int) -> int:
    """The place of the first character from `place` on, on its line, that is no space."""
    while place < line_end and text[place].isspace():
        place += 1
    return place
