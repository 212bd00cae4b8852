"""Which quotation marks of a text belong together?

The same mark opens in one language and closes in another: “so” in English, „so“ in German, ”so” in
Swedish; «so» in French, »so« in German, »so» in Finnish. So each family of marks is read in order,
and what a mark does depends on what is open before it and on what stands beside it.

Some uses are doubtful: the inch mark of `5"`, the apostrophes of `'90s` and of `the assistants'
answers`. A doubtful mark pairs only with a sure one, and only within its line. A quotation that a
doubtful mark closed may still be closed in a later paragraph, by a sure mark that closes nothing
else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ste_jax.prompts.markdown import Block, Span

# A letter or digit, but for scripts that put no spaces between words.
_LETTER = (
    r"[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff"
    r"\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_NEVER = "(?!)"
_ELISION = r"(?:\d\ds?\b|(?:tis|twas|em|cause|til|n|bout|round)\b)"
_OPENS = rf"(?<!{_LETTER}){{0}}(?=\S)"
_CLOSES = rf"(?<=[^\s(\[{{{{]){{0}}(?!{_LETTER})"
_POSSESSIVE = r"(?<=[sS]){0}(?=\s\w)|(?<=\d){0}"


@dataclass(frozen=True)
class _Mark:
    """What one mark can do, as patterns that match at the mark and look at what is around it."""

    opens: re.Pattern[str] = re.compile(_NEVER)
    closes: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    """Opening mark -> the pattern by which this mark closes it."""
    doubtful: re.Pattern[str] = re.compile(_NEVER)


@dataclass(frozen=True)
class Family:
    """Marks that open and close each other."""

    marks: Mapping[str, _Mark]
    nests: bool = False
    """Whether a pair may stand inside another: then an opening mark leaves open what is open."""
    apostrophes: bool = False
    """Whether its marks are also apostrophes: then, over several paragraphs, only marks that cannot
    be an apostrophe are paired."""


def _same(mark: str, doubtful: str, apostrophes: bool = False) -> Family:
    """A family of one mark that opens or closes by what is beside it; with space on both sides it
    does each in turn."""
    opening = re.compile(rf"{_OPENS.format(mark)}|(?:(?<![^\s:(\[])){mark}(?=\s)")
    closing = re.compile(rf"{_CLOSES.format(mark)}|(?<=\s){mark}(?=[\s.,;:!?)\]]|\Z)")
    return Family(
        {mark: _Mark(opening, {mark: closing}, re.compile(rf"{doubtful}|(?<=\d\s){mark}(?=\s)"))},
        apostrophes=apostrophes,
    )


def _pairwise(mark: str) -> Family:
    """A family of one mark, of which every second one closes, whatever is beside it."""
    always = re.compile(mark)
    return Family({mark: _Mark(always, {mark: always})})


def _two(opening: str, closing: str) -> Family:
    """A family of a mark that only opens and a mark that only closes."""
    closes = {opening: re.compile(re.escape(closing))}
    return Family(
        {opening: _Mark(re.compile(re.escape(opening))), closing: _Mark(closes=closes)}, nests=True
    )


def _angled(left: str, right: str) -> Family:
    glued, wordless = re.compile(rf"(?<=\S){left}"), re.compile(rf"(?<=\S){right}(?!{_LETTER})")
    return Family(
        {
            left: _Mark(re.compile(left), {right: glued}),
            right: _Mark(
                re.compile(_OPENS.format(right)), {left: re.compile(right), right: wordless}
            ),
        },
        nests=True,
    )


def _curly() -> Family:
    ends = re.compile(r"(?<=\S)“(?=[\s.,;:!?)\]。，、；]|\Z)")
    closing = re.compile("”")
    low, prime = re.compile("[“”‟]"), re.compile("[〞〟]")
    return Family(
        {
            "„": _Mark(re.compile("„")),
            "‟": _Mark(re.compile("‟"), {"„": low}),
            "“": _Mark(re.compile("“"), {"„": low, "“": ends, "”": ends}),
            "”": _Mark(
                re.compile(_OPENS.format("”")),
                {"„": closing, "“": closing, "‟": closing, "”": closing, "〝": closing},
                re.compile(r"(?<=\d)”"),
            ),
            "〝": _Mark(re.compile("〝")),
            "〞": _Mark(closes={"〝": prime}),
            "〟": _Mark(closes={"〝": prime}),
        },
        nests=True,
    )


def _single() -> Family:
    ends = re.compile(rf"(?<=\S)‘(?!{_LETTER})")
    closing = re.compile(_CLOSES.format("’"))
    return Family(
        {
            "‚": _Mark(re.compile(_OPENS.format("‚"))),
            "‘": _Mark(re.compile("‘"), {"‚": ends}, re.compile(f"‘{_ELISION}")),
            "‛": _Mark(re.compile(_OPENS.format("‛"))),
            "’": _Mark(
                re.compile(_OPENS.format("’")),
                dict.fromkeys("‚‘‛’", closing),
                re.compile(f"(?<!\\S)’{_ELISION}|" + _POSSESSIVE.format("’")),
            ),
        },
        apostrophes=True,
    )


_DIRECTED = ("「」", "『』", "｢｣", "﹁﹂", "﹃﹄", "《》", "〈〉", "❝❞", "❛❜", "⹂⹃")
_VARIED = (
    "“”",
    "„“",
    "„”",
    "„‟",
    "‟”",
    "〝〞",
    "〝〟",
    "‘’",
    "‚‘",
    "‚’",
    "«»",
    "»«",
    "‹›",
    "›‹",
    "`´",
    "`'",
    "´`",
)
_LATEX = re.compile("(?<!`)``(?!`)")
FAMILIES = (
    _pairwise('"""'),
    _pairwise("'''"),
    _same('"', r'(?<=\d)"'),
    _same("＂", _NEVER),
    _same("״", _NEVER),
    _curly(),
    _angled("«", "»"),
    _angled("‹", "›"),
    *(_two(pair[0], pair[1]) for pair in _DIRECTED),
    Family({"``": _Mark(_LATEX), "''": _Mark(closes={"``": re.compile("''")})}),
    _single(),
    _same("'", rf"'{_ELISION}|" + _POSSESSIVE.format("'"), apostrophes=True),
    _same("＇", _NEVER),
    _same("´", _NEVER),
)
"""The families in the order in which they are read: marks inside a pair of one family are passed
over by the next."""

PAIRS: tuple[tuple[str, str], ...] = (
    *((mark, mark) for mark in "\"＂״”»›'＇’´`“"),
    *((pair[0], pair[1]) for pair in _VARIED),
    *((pair[0], pair[1]) for pair in _DIRECTED),
    ("``", "''"),
)
"""Pairs of marks that quote a text that they touch on both sides."""


# ---------------------------------------------------------------------------------------------
# Pairing


@dataclass(frozen=True)
class _Use:
    """One quotation mark where it stands."""

    start: int
    end: int
    line: int
    mark: str
    opens: bool
    doubtful: bool


def quotations(
    text: str, blocks: Sequence[Block], family: Family, taken: bytearray
) -> tuple[list[Span], list[Span]]:
    """The quotations that a family's marks make: those within a block, and those over several
    blocks. Marks at characters that are `taken` make none."""
    pattern = re.compile("|".join(map(re.escape, family.marks)))
    within: list[Span] = []
    over = _Over(text, family)
    if not pattern.search(text):
        return [], []
    for block in blocks:
        uses, line, known = [], 0, block.start
        for found in pattern.finditer(text, block.start, block.end):
            at, mark = found.start(), family.marks[found[0]]
            if taken[at]:
                continue
            line += text.count("\n", known, at)
            known = at
            uses.append(
                _Use(
                    start=at,
                    end=found.end(),
                    line=line,
                    mark=found[0],
                    opens=bool(mark.opens.match(text, at)),
                    doubtful=bool(mark.doubtful.match(text, at)),
                )
            )
        paired, left, weak = _pair(text, uses, family)
        within += paired
        over.block(block, uses, paired, left, weak)
    return within, over.spans


def _pair(
    text: str, uses: Sequence[_Use], family: Family
) -> tuple[list[Span], list[_Use], _Use | None]:
    """The pairs of a block; the marks without a partner, in order; and the opening mark of the last
    pair, if a doubtful mark closes that."""
    weak: _Use | None = None
    spans: list[Span] = []
    alone: list[_Use] = []
    open_: list[_Use] = []
    sure = _next_sure(uses)
    for index, use in enumerate(uses):
        if open_ and _closes(text, family, open_[-1], use):
            after = sure[index] if use.doubtful else None
            if after is not None and _closes(text, family, open_[-1], uses[after]):
                continue  # a better one comes before any that opens
            opening = open_.pop()
            weak = opening if use.doubtful else None
            spans.append((opening.start, use.end))
        elif use.opens:
            if open_ and not family.nests:
                alone.append(open_.pop())
            open_.append(use)
            weak = None
        else:
            alone.append(use)
    return spans, sorted([*alone, *open_], key=lambda use: use.start), weak


def _next_sure(uses: Sequence[_Use]) -> list[int | None]:
    """For each mark the next one whose use is not doubtful."""
    following: list[int | None] = [None] * len(uses)
    last: int | None = None
    for index in range(len(uses) - 1, -1, -1):
        following[index] = last
        if not uses[index].doubtful:
            last = index
    return following


def _closes(text: str, family: Family, opening: _Use, use: _Use) -> bool:
    """Whether a mark can close what `opening` opens. Two doubtful marks never pair."""
    closing = family.marks[use.mark].closes.get(opening.mark)
    if closing is None or not closing.match(text, use.start):
        return False
    if not (opening.doubtful or use.doubtful):
        return True
    return opening.line == use.line and not (opening.doubtful and use.doubtful)


class _Over:
    """Quotations over several paragraphs, found block by block.

    A mark that is left open in one paragraph is closed by the next mark that closes nothing in its
    own paragraph. Paragraphs between them may begin with the opening mark again, as in English;
    that mark continues the quotation. In a list item, a quotation ends with the item at the latest.
    """

    def __init__(self, text: str, family: Family) -> None:
        self.spans: list[Span] = []
        self._text, self._family = text, family
        self._open: _Use | None = None
        self._weak: tuple[_Use, bool] | None = None
        """The opening mark of a pair that a doubtful mark closed, and whether it is in a list
        item."""
        self._item = self._plain = False

    def block(
        self,
        block: Block,
        uses: Sequence[_Use],
        paired: Sequence[Span],
        left: Iterable[_Use],
        weak: _Use | None,
    ) -> None:
        """Takes the next block, its marks (`uses`), and what `_pair` gave for them."""
        if self._weak and self._weak[1] and block.item:
            self._weak = None
        if self._item and block.item:
            self._open = None
        goes_on = self._goes_on(block, uses)
        if goes_on and self._open and paired and paired[0][0] == uses[0].start:
            self.spans.append((self._open.start, paired[0][1]))
            self._open = None
        for use in left:
            if self._open and self._ends(self._open, use, block):
                self.spans.append((self._open.start, use.end))
                self._open = None
            elif self._weak and not self._open and self._ends(self._weak[0], use, block):
                self.spans.append((self._weak[0].start, use.end))
                self._weak = None
            elif self._begins(use, block) and not (goes_on and self._open and use is uses[0]):
                self._open, self._item, self._plain = use, block.item, False
                goes_on = True
        self._plain = self._plain or not goes_on
        if weak or self._open:
            self._weak = (weak, block.item) if weak else None

    def _goes_on(self, block: Block, uses: Sequence[_Use]) -> bool:
        """Whether a paragraph begins with the mark of the open quotation, as all since it began."""
        if self._open is None or self._plain or not uses:
            return False
        before = self._text[block.start : uses[0].start]
        return uses[0].opens and uses[0].mark == self._open.mark and not before.strip("*_ \t")

    def _begins(self, use: _Use, block: Block) -> bool:
        if not use.opens or use.doubtful:
            return False
        before = self._text[max(block.start, use.start - 2) : use.start].rstrip()
        return not self._family.apostrophes or before[-1:] in ("", ":", ",")

    def _ends(self, opening: _Use, use: _Use, block: Block) -> bool:
        closing = self._family.marks[use.mark].closes.get(opening.mark)
        if use.doubtful or closing is None or not closing.match(self._text, use.start):
            return False
        before = self._text[max(block.start, use.start - 1) : use.start]
        return not self._family.apostrophes or before in _ENDS or use.end == block.end


_ENDS = frozenset(".!?…,])。！？*_")
