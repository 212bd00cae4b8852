"""Which parts of a text are paragraphs, and which are code or block quotes?

Texts are read as Markdown, but tolerantly, for language models break paragraphs at will. A block is
a paragraph, a heading or a list item. Every function takes time that is linear in its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Span = tuple[int, int]
"""Start and end of a piece of a text, in characters."""

_LIST_MARKS = r"\s*+(?:(?:[-*+]|\d{1,9}[.)])\s++)*+"
_FENCE = re.compile(_LIST_MARKS + r"(`{3,}+(?=[^`]*+$)|~{3,}+)")
_BLOCK_QUOTE = re.compile(_LIST_MARKS + ">")
_LIST_ITEM = re.compile(r"\s*+(?:[-*+]|\d{1,9}[.)])(?:\s+|$)")
_HEADING = re.compile(r"\s*+#{1,6}\s")
_NO_LAZY_LINE = re.compile(r"\s*+(?:(?:[-*_]\s*+){3,}$|=+\s*$|</?[a-zA-Z])")
"""Lines that, as list items, headings and fences do, begin something new after a block quote."""
_BACKTICKS = re.compile(r"(?<![\\`])`+")
_CODE_INDENT = 4


@dataclass(frozen=True)
class Block:
    """A paragraph, a heading or a list item: where it stands in the text."""

    start: int
    end: int
    item: bool
    """Whether it is a list item (its first paragraph)."""


@dataclass
class Layout:
    """A text's blocks, and for each character whether it stands in something else."""

    blocks: list[Block] = field(default_factory=list)
    fences: bytearray = field(default_factory=bytearray)
    """Fenced code with its fences, where the fence is closed."""
    open_fence: bytearray = field(default_factory=bytearray)
    """Code after a fence that is never closed: it runs to the end."""
    quotes: bytearray = field(default_factory=bytearray)
    """Block quotes, with lines that go on with their last paragraph without a mark."""
    indented: bytearray = field(default_factory=bytearray)
    """Indented code."""


def cover(mask: bytearray, start: int, end: int) -> None:
    """Mark the characters from `start` to `end`."""
    mask[start:end] = b"\1" * (min(end, len(mask)) - start)


def cover_all(mask: bytearray, spans: Iterable[Span]) -> None:
    """Mark the characters of all `spans`, which may be nested."""
    done = 0
    for start, end in sorted(spans):
        if end > done:
            cover(mask, max(start, done), end)
            done = end


def lines(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of every line, its line break left out."""
    start = 0
    for match in re.finditer(r"\r\n|\r|\n", text):
        yield start, match.start()
        start = match.end()
    yield start, len(text)


def layout(text: str, anew: re.Pattern[str] | None = None) -> Layout:
    """The blocks, the code and the block quotes of `text`. A line that `anew` matches never goes on
    with a block quote."""
    reading = _Reading(len(text), anew)
    for start, end in lines(text):
        reading.take(text[start:end], start, end)
    return reading.finish()


class _Reading:
    """The layout of the lines that were taken so far."""

    def __init__(self, size: int, anew: re.Pattern[str] | None) -> None:
        self._found = Layout([], *(bytearray(size) for _ in range(4)))
        self._size, self._anew = size, anew
        self._block: Block | None = None
        self._fence, self._fence_start = "", 0
        self._blank, self._in_code, self._content = True, False, 0
        self._lazy = False
        """Whether a line of mere text goes on with a block quote."""

    def take(self, line: str, start: int, end: int) -> None:
        """Takes the next line, which stands from `start` to `end`."""
        if self._fence:
            closing = line.strip()
            if len(closing) >= len(self._fence) and not closing.strip(self._fence[0]):
                cover(self._found.fences, self._fence_start, end)
                self._fence = ""
        elif not line.strip():
            self._end_block()
            self._blank, self._lazy = True, False
        elif self._is_code(line):
            self._end_block()
            cover(self._found.indented, start, end)
            self._in_code, self._blank = True, False
        else:
            self._outside_code(line, start, end)

    def finish(self) -> Layout:
        """The layout, when all lines were taken."""
        if self._fence:
            cover(self._found.open_fence, self._fence_start, self._size)
        self._end_block()
        return self._found

    def _is_code(self, line: str) -> bool:
        may_be = self._blank or self._in_code
        return may_be and _indent(line) >= self._content + _CODE_INDENT

    def _outside_code(self, line: str, start: int, end: int) -> None:
        item = _LIST_ITEM.match(line)
        if item:
            self._content = _indent(line) + len(item[0].lstrip())
        elif self._blank:
            self._content = min(self._content, _indent(line))
        self._in_code, self._blank = False, False
        opened = _FENCE.match(line)
        if opened:
            self._end_block()
            self._fence, self._fence_start, self._lazy = opened.group(1), start, False
            return
        quote, heading = _BLOCK_QUOTE.match(line), _HEADING.match(line)
        begins = item or heading or _NO_LAZY_LINE.match(line)
        begins = begins or (self._anew and self._anew.fullmatch(line))
        self._lazy = self._lazy and not begins
        if quote:
            self._end_block()
            cover(self._found.quotes, start, end)
            inner = line[quote.end() :]
            self._lazy = bool(inner.strip()) and not (_HEADING.match(inner) or _FENCE.match(inner))
        elif self._lazy:
            cover(self._found.quotes, start, end)
        elif self._block is None or item or heading:
            self._end_block()
            self._block = Block(start, end, bool(item))
        else:
            self._block = Block(self._block.start, end, self._block.item)

    def _end_block(self) -> None:
        if self._block is not None:
            self._found.blocks.append(self._block)
            self._block = None


def _indent(line: str) -> int:
    """How many columns of white space a line begins with; a tab goes to the next multiple of 4."""
    columns = 0
    for char in line:
        if char == "\t":
            columns += 4 - columns % 4
        elif char.isspace():
            columns += 1
        else:
            break
    return columns


def inline_code(text: str, blocks: list[Block], taken: bytearray) -> bytearray:
    """Marks inline code: from a run of backticks to the next run of the same length in its block.
    Runs that begin in a character that is `taken` are passed over."""
    code = bytearray(len(text))
    for block in blocks:
        matches = _BACKTICKS.finditer(text, block.start, block.end)
        runs = [match.span() for match in matches if not taken[match.start()]]
        following: list[int | None] = [None] * len(runs)
        last: dict[int, int] = {}
        for index in range(len(runs) - 1, -1, -1):
            length = runs[index][1] - runs[index][0]
            following[index] = last.get(length)
            last[length] = index
        index = 0
        while index < len(runs):
            close = following[index]
            if close is None:
                index += 1
            else:
                cover(code, runs[index][0], runs[close][1])
                index = close + 1
    return code
