"""Which parts of a text are its author's own words, and which are quoted or shown as code?

Read as Markdown is read, but tolerantly: language models leave quotes open, write inch marks and
apostrophes, and break paragraphs at will. Two rules follow. Nothing reaches past its block (a
paragraph, a heading, a list item), so that a quotation mark left open cannot swallow what comes
after; and a quotation mark that does not pair with another quotes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

Span = tuple[int, int]
"""Start and end of a piece of a block, in characters."""

_LIST_MARKS = r"\s*(?:(?:[-*+]|\d{1,9}[.)])\s+)*"
_FENCE = re.compile(_LIST_MARKS + r"(`{3,}(?!.*`)|~{3,})")
_BLOCK_QUOTE = re.compile(_LIST_MARKS + ">")
_OWN_BLOCK = re.compile(r"\s*(?:#{1,6}|[-*+]|\d{1,9}[.)])\s")
_BACKTICKS = re.compile(r"(?<![\\`])`+")


def blocks(text: str) -> Iterator[str]:
    """The blocks of `text` in order, without block quotes, fenced code and blank lines.

    A fence that is not closed runs to the end. Line breaks inside a block are kept as newlines.
    """
    block: list[str] = []
    fence = ""
    for line in re.split(r"\r\n|\r|\n", text):
        if fence:
            closing = line.strip()
            if len(closing) >= len(fence) and set(closing) == {fence[0]}:
                fence = ""
            continue
        opened = _FENCE.match(line)
        if opened:
            fence = opened.group(1)
        apart = opened or not line.strip() or _BLOCK_QUOTE.match(line)
        if block and (apart or _OWN_BLOCK.match(line)):
            yield "\n".join(block)
            block = []
        if not apart:
            block.append(line)
    if block:
        yield "\n".join(block)


def quoted_spans(block: str, kernel: re.Pattern[str]) -> list[Span]:
    """The quoted and coded pieces of a block of `blocks`, their quotation marks included.

    A match of `kernel` (a verdict mark) that is hugged by a pair of quotation marks or backticks is
    quoted wherever it stands; those marks then take no part in other pairs.
    """
    spans = [match.span() for match in _hugged(kernel).finditer(block)]
    spans += _code_spans(block, spans)
    for style in _STYLES:
        spans += _paired(block, style, spans)
    return spans


def in_spans(position: int, spans: list[Span]) -> bool:
    """Whether the character at `position` lies in one of `spans`."""
    return any(start <= position < end for start, end in spans)


def _hugged(kernel: re.Pattern[str]) -> re.Pattern[str]:
    inner = rf"[*_]{{0,3}}(?:{kernel.pattern})[*_]{{0,3}}[.,;:!?]?"
    pairs = [('"', '"'), ("“", "”"), ("'", "'"), ("‘", "’"), ("(?<!`)`", "`(?!`)")]
    return re.compile("|".join(f"{opening}{inner}{closing}" for opening, closing in pairs))


def _code_spans(block: str, taken: list[Span]) -> list[Span]:
    """Inline code: from a run of backticks to the next run of the same length."""
    runs = [run.span() for run in _BACKTICKS.finditer(block) if not in_spans(run.start(), taken)]
    spans: list[Span] = []
    unclosed: set[int] = set()
    index = 0
    while index < len(runs):
        start, end = runs[index]
        length = end - start
        following = range(index + 1, len(runs)) if length not in unclosed else range(0)
        close = next((i for i in following if runs[i][1] - runs[i][0] == length), None)
        if close is None:
            unclosed.add(length)
            index += 1
        else:
            spans.append((start, runs[close][1]))
            index = close + 1
    return spans


# ---------------------------------------------------------------------------------------------
# Quotation marks


@dataclass(frozen=True)
class _Style:
    """One way of quoting: how a mark opens and closes, and which uses of it are doubtful.

    The patterns are matched at the mark, with what stands around it in view. A doubtful use pairs
    only with a sure one, and only within its line: the inch mark of `5"`, the apostrophes of `'90s`
    and of `the assistants' answers`.
    """

    opening: re.Pattern[str]
    closing: re.Pattern[str]
    doubtful: re.Pattern[str]


_ELISION = r"(?:\d|(?:tis|twas|em|cause|til|n)\b)"
_POSSESSIVE = r"(?<=[sS]){0}(?=\s\w)|(?<=\d){0}"


def _style(opening: str, closing: str, doubtful: str) -> _Style:
    return _Style(re.compile(opening), re.compile(closing), re.compile(doubtful))


# `[^\W_]` is a letter or digit.
_STYLES = (
    _style(r'(?<![^\W_])"(?=\S)', r'(?<=\S)"(?![^\W_])', r'(?<=\d)"'),
    _style("“", "”", r"(?<=\d)”"),
    _style("‘", r"(?<=\S)’(?![^\W_])", rf"‘{_ELISION}|" + _POSSESSIVE.format("’")),
    _style(
        r"(?<![^\W_])'(?=\S)",
        r"(?<=\S)'(?![^\W_])",
        rf"'{_ELISION}|" + _POSSESSIVE.format("'"),
    ),
)


@dataclass(frozen=True)
class _Use:
    """One quotation mark where it stands."""

    position: int
    opens: bool
    closes: bool
    doubtful: bool


def _uses(block: str, style: _Style, taken: list[Span]) -> list[_Use]:
    """The quotation marks of a style that can open or close a quotation, in order."""
    opening = {match.start() for match in style.opening.finditer(block)}
    closing = {match.start() for match in style.closing.finditer(block)}
    return [
        _Use(at, at in opening, at in closing, bool(style.doubtful.match(block, at)))
        for at in sorted(opening | closing)
        if not in_spans(at, taken)
    ]


def _paired(block: str, style: _Style, taken: list[Span]) -> list[Span]:
    """From each opening mark to its closing mark, found before the next mark that can only open."""
    uses = _uses(block, style, taken)
    spans: list[Span] = []
    index = 0
    while index < len(uses):
        close = _closing_of(index, uses, block) if uses[index].opens else None
        if close is None:
            index += 1
        else:
            spans.append((uses[index].position, uses[close].position + 1))
            index = close + 1
    return spans


def _closing_of(index: int, uses: list[_Use], block: str) -> int | None:
    """The first sure closing mark; failing that, on the same line, the first doubtful one."""
    opening = uses[index]
    line_end = block.find("\n", opening.position)
    doubtful: int | None = None
    for i in range(index + 1, len(uses)):
        use = uses[i]
        if not use.closes:
            break
        same_line = line_end == -1 or use.position < line_end
        if not use.doubtful and (same_line or not opening.doubtful):
            return i
        if doubtful is None and same_line and not opening.doubtful:
            doubtful = i
    return doubtful
