"""What of a completion are the model's thoughts, and what does it say?

Models that think write their thoughts before what they say, and between marks: `<think>` and
`</think>`, `[THINK]` and `[/THINK]`, and their kin. Where the chat template itself writes the
opening mark, a completion begins inside its thoughts and only the closing mark stands in it.
Servers may give thoughts apart from the text.

Only what is said counts: as an answer, an instruction, a category or a verdict. Every stage reads a
completion through `said` or a stored text through `split`, and there is no other way to tell.
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
"""Tokens that a text cannot do without: left out, thoughts would run into what is said."""

_KINDS = {mark.lower(): kind for kind, pair in enumerate(MARKS) for mark in pair}
_ANY = re.compile("|".join(map(re.escape, _KINDS)), re.IGNORECASE)
_OPENS = frozenset(opening.lower() for opening, _ in MARKS)
_WORDS = frozenset(_KINDS[name] for name in ("<thought>", "<reasoning>"))
"""Kinds that data may hold as elements of its own: they begin thoughts only where a text begins."""


class Parts(NamedTuple):
    """A text taken apart."""

    said: str
    """What stands outside thoughts."""
    thoughts: str
    open: bool
    """Whether the text ends inside thoughts: what would have been said is not there."""


def said(completion: Completion, start: str = "") -> Parts:
    """What a completion says. `start` is the forced start of the turn, which the text continues."""
    if not completion.thoughts:
        return split(whole(completion, start), lone=completion.thinks)
    if not _server_ended(completion):
        return Parts("", completion.thoughts, True)
    return split(start + completion.text)._replace(thoughts=completion.thoughts)


def whole(completion: Completion, start: str = "") -> str:
    """All of the assistant's turn as one text of which `split` tells the thoughts: with the mark
    that the template wrote, and with the thoughts that a server gave apart (marks in these are put
    as code, for they end nothing)."""
    begins = _ANY.match(completion.text.lstrip())  # on a line of its own, whatever was forced
    text = f"{start.rstrip()}\n{completion.text}" if start and begins else start + completion.text
    if completion.thoughts:
        told = f"\n{CLOSING}\n\n{text}" if _server_ended(completion) else ""
        return f"{OPENING}\n{_ANY.sub(_as_code, completion.thoughts.strip())}{told}"
    if completion.thinking:
        return f"{MARKS[_closed_as(text)][0]}\n{text}"
    return text


def _as_code(mark: re.Match[str]) -> str:
    return f"`{mark[0]}`"


def without_put_back(text: str) -> str:
    """What a model wrote of a `whole` text that may begin with the mark its template wrote."""
    begun = _ANY.match(text)
    put_back = begun and begun[0].lower() in _OPENS and text[begun.end() :].startswith("\n")
    return text[begun.end() + 1 :] if begun and put_back else text


def _server_ended(completion: Completion) -> bool:
    """Whether thoughts that a server gave apart came to their end."""
    return bool(completion.text.strip()) or completion.finish_reason != "length"


def _closed_as(text: str) -> int:
    """Of which kind the first closing mark is; the commonest where there is none."""
    found = [mark for mark in _marks(text) if not mark.opens] if holds_mark(text) else []
    sure = [mark for mark in found if not (mark.shown or mark.fenced or mark.named)]
    return (sure or found)[0].kind if found else 0


def left_open(text: str) -> str:
    """The opening mark of thoughts that no closing mark follows in `text`, or nothing. Read as a
    template's own text is: a mark is a mark, whatever stands around it."""
    last = ""
    for mark in _ANY.finditer(text):
        last = mark[0] if mark[0].lower() in _OPENS else ""
    return last


def closing_of(text: str) -> str:
    """What ends the thoughts in which `text` ends; nothing where it ends in none."""
    parts, kind = _split(text)
    return f"\n{MARKS[kind][1]}\n\n" if parts.open else ""


def holds_mark(text: str) -> bool:
    """Whether a mark of thoughts, opening or closing, stands in `text`."""
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
    """In inline code, or quoted by itself: text about a mark, which begins and ends nothing."""
    fenced: bool
    """In fenced code."""
    unclosed: bool
    """In fenced code that is never closed."""
    fence: int
    """Which piece of fenced code, closed or not, it stands in; 0 if none."""
    apart: bool
    """Stands at the start of a line."""
    alone: bool
    """Has its line to itself."""
    named: bool
    """Stands in a sentence like a word ("ends with </think>, then answers")."""


def split(text: str, *, lone: bool = True) -> Parts:
    """The thoughts in `text` and what is said outside them.

    Thoughts begin at an opening mark at the start of a line (or after a sentence, if they end), and
    end at the closing mark of the same kind. A closing mark without an opening one ends thoughts
    that began before the text did: the template may have opened them. Marks that are shown as code,
    or quoted by themselves, or named in a sentence are text like any other; but where thoughts are
    known to be open, a mark in a sentence ends them if no better one does.

    Of closing marks without an opening one, two more end thoughts, for thoughts that leak are worse
    than an answer that is cut: one with its line to itself in fenced code, which thoughts often
    leave open; and one in a sentence. The latter is text where a mark of its kind was named before,
    where a comma or the like follows, where it is quoted, and after thoughts. Without `lone` (the
    model's template is known to have no thoughts) no closing mark without an opening one ends any.
    Linear in the text.
    """
    return _split(text, lone)[0]


def _split(text: str, lone: bool = True) -> tuple[Parts, int]:
    """`split`, and the kind of the thoughts that are open."""
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
    """Which closing marks end thoughts that no mark has begun? Marks are told to it in order."""

    def __init__(self, text: str) -> None:
        self.ended = False
        """Whether thoughts have come to their end before."""
        self._text = text
        self._open: Counter[tuple[int, int]] = Counter()
        """Elements of data's own, outside code and in each fence, that are not yet closed."""
        self._named: Counter[int] = Counter()
        self._quoted: bytearray | None = None

    def opened(self, mark: _Mark) -> None:
        """An opening mark that begins no thoughts."""
        if mark.fence or (mark.kind in _WORDS and not mark.shown):
            self._open[mark.kind, mark.fence] += 1
        elif not mark.shown:
            self._named[mark.kind] += 1

    def thoughts(self, mark: _Mark) -> bool:
        """Whether a closing mark ends thoughts."""
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
"""What follows a mark that is a word of its sentence, and begins no answer."""


def _trimmed(spoken: Sequence[str]) -> str:
    """The pieces joined, without blank lines around them: the first line's indent stays."""
    text = "".join(spoken).rstrip()
    blank = len(text) - len(text.lstrip())
    return text[text.rfind("\n", 0, blank) + 1 :]


def _next_closings(marks: Sequence[_Mark]) -> list[int | None]:
    """For each mark the closing one of its kind that would end thoughts begun there.

    The next that is not named in a sentence; else the next; else the last that has its line to
    itself in fenced code, for in thoughts a fence is often left open, and then pairs with one of
    the answer.
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
    """The last character before `place` on its line that is no space; before the line if none."""
    place -= 1
    while place >= line and text[place].isspace():
        place -= 1
    return place


def _ahead(text: str, place: int, line_end: int) -> int:
    """The first character from `place` on that is no space, up to the end of its line."""
    while place < line_end and text[place].isspace():
        place += 1
    return place
