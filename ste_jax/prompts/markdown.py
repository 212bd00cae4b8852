"""Which parts of a text are paragraphs, and which are code or block quotes?

Read as Markdown is read, but tolerantly, for language models break paragraphs at will. A block is a
paragraph, a heading or a list item. Every function takes time that is linear in its text.
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
    """That of a fence which is never closed: it runs to the end."""
    quotes: bytearray = field(default_factory=bytearray)
    """Block quotes, with lines that go on with their last paragraph without a mark."""
    indented: bytearray = field(default_factory=bytearray)
    """Indented code."""


def cover(mask: bytearray, start: int, end: int) -> None:
    """Mark the characters from `start` to `end`."""
    mask[start:end] = b"\1" * (min(end, len(mask)) - start)


def cover_all(mask: bytearray, spans: Iterable[Span]) -> None:
    """Mark the characters of all `spans`, which may lie in one another."""
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
    size = len(text)
    found = Layout([], *(bytearray(size) for _ in range(4)))
    fence, fence_start = "", 0
    block: Block | None = None
    blank, in_code, content = True, False, 0
    lazy = False  # whether a line of mere text goes on with a block quote

    def end_block() -> None:
        nonlocal block
        if block is not None:
            found.blocks.append(block)
            block = None

    for start, end in lines(text):
        line = text[start:end]
        if fence:
            closing = line.strip()
            if len(closing) >= len(fence) and not closing.strip(fence[0]):
                cover(found.fences, fence_start, end)
                fence = ""
            continue
        if not line.strip():
            end_block()
            blank, lazy = True, False
            continue
        indent = _indent(line)
        if (blank or in_code) and indent >= content + _CODE_INDENT:
            end_block()
            cover(found.indented, start, end)
            in_code, blank = True, False
            continue
        item = _LIST_ITEM.match(line)
        if item:
            content = _indent(line) + len(item[0].lstrip())
        elif blank:
            content = min(content, indent)
        in_code, blank = False, False
        opened = _FENCE.match(line)
        if opened:
            end_block()
            fence, fence_start, lazy = opened.group(1), start, False
            continue
        quote = _BLOCK_QUOTE.match(line)
        begins = item or _HEADING.match(line) or _NO_LAZY_LINE.match(line)
        lazy = lazy and not begins and not (anew and anew.fullmatch(line))
        if quote:
            end_block()
            cover(found.quotes, start, end)
            inner = line[quote.end() :]
            lazy = bool(inner.strip()) and not (_HEADING.match(inner) or _FENCE.match(inner))
        elif lazy:
            cover(found.quotes, start, end)
        elif block is None or item or _HEADING.match(line):
            end_block()
            block = Block(start, end, bool(item))
        else:
            block = Block(block.start, end, block.item)
    if fence:
        cover(found.open_fence, fence_start, size)
    end_block()
    return found


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
    """Inline code: from a run of backticks to the next run of the same length in its block. Runs
    that begin in what is `taken` count for nothing."""
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
