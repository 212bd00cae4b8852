"""Which parts of a text are its author's own words, and which are quoted or shown as code?

Texts are read as Markdown and HTML, but tolerantly: language models leave quotes open, write inch
marks and apostrophes, and break paragraphs at will. A quotation mark that does not pair with
another quotes nothing, so that one left open cannot swallow what comes after. Within a block (a
paragraph, a heading, a list item) `ste_jax.prompts.quotation_marks` pairs them; over several
paragraphs one that was left open pairs with one that closes nothing else.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from ste_jax.prompts.markdown import Span, cover, cover_all, inline_code, layout
from ste_jax.prompts.quotation_marks import FAMILIES, PAIRS, quotations

_ENTITY = re.compile(r"&(?:#\d{1,6}|#[xX][0-9a-fA-F]{1,5}|[a-zA-Z]{2,8});")
_SPOKEN_FOR = frozenset("<>\u00a0").union(*(family.marks for family in FAMILIES))
"""Characters whose HTML entities are read as the characters themselves."""

_TAG = re.compile(
    r"<(/?)(code|pre|q|blockquote|samp|kbd|tt|cite|xmp)\b[^<>]{0,400}>", re.IGNORECASE
)
_RUNS_ON = frozenset({"pre", "blockquote", "xmp"})
"""Elements that, begun at the start of a line and never closed, run to the end, as fences do; so
does `code` where its tag has the line to itself."""


@dataclass(frozen=True)
class Quoted:
    """For each character of a text whether it is quoted."""

    anyhow: bytearray
    """Whether it is quoted by anything."""
    around: bytearray
    """Whether it is quoted by something longer than a line: fenced code, a block quote, an HTML
    element, a quotation over several paragraphs, or indented code of several lines."""


def readable(text: str) -> str:
    """`text` with one kind of line break, and HTML's entities of quotation marks and of angle
    brackets as these characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _ENTITY.sub(_character, text) if "&" in text else text


def _character(entity: re.Match[str]) -> str:
    meant = html.unescape(entity[0])
    return meant if meant in _SPOKEN_FOR else entity[0]


def quoted(text: str, kernel: re.Pattern[str]) -> Quoted:
    """Finds what is quoted in a `readable` text.

    A match of `kernel` (a verdict mark) that is hugged by a pair of quotation marks or backticks is
    quoted wherever it stands; those marks then take no part in other pairs. A match that has its
    line to itself never continues a block quote. The time is linear in the text.
    """
    found = layout(text, re.compile(rf"[\s*_~]*+(?:{kernel.pattern})[\s*_~.]*+"))
    around = _either(found.fences, found.open_fence, found.quotes)
    hugged = bytearray(len(text))
    for match in _hugged(kernel).finditer(text):
        cover(hugged, *match.span())
    taken = _either(around, found.indented, hugged)
    taken = _either(taken, inline_code(text, found.blocks, taken))
    elements = _elements(text, taken)
    cover_all(taken, elements)
    cover_all(around, (span for span in elements if text.find("\n", *span) != -1))
    for family in FAMILIES:
        within, over = quotations(text, found.blocks, family, taken)
        cover_all(taken, within + over)
        cover_all(around, over)
    return Quoted(taken, _either(around, _of_several_lines(text, found.indented)))


def _either(*masks: bytearray) -> bytearray:
    """The characters that are marked in one mask at least."""
    size = len(masks[0])
    joined = 0
    for mask in masks:
        joined |= int.from_bytes(mask, "little")
    return bytearray(joined.to_bytes(size, "little"))


def _hugged(kernel: re.Pattern[str]) -> re.Pattern[str]:
    inner = rf"[*_]{{0,3}}(?:{kernel.pattern})[*_]{{0,3}}[.,;:!?。！]?"
    pairs = [(_SIDES.get(o, (o, o))[0], _SIDES.get(c, (c, c))[1]) for o, c in PAIRS]
    return re.compile("|".join(f"{opening}{inner}{closing}" for opening, closing in pairs))


_SIDES = {"`": ("(?<!`)`", "`(?!`)"), "``": ("(?<!`)``", "``")}
"""Marks that have a pattern of their own: one for the opening and one for the closing mark."""


def _elements(text: str, taken: bytearray) -> list[Span]:
    """The HTML elements that quote or show code; tags that are themselves shown as code are left
    out."""
    spans: list[Span] = []
    open_: dict[str, list[Span]] = {}
    for tag in _TAG.finditer(text):
        if taken[tag.start()]:
            continue
        begun = open_.setdefault(tag[2].lower(), [])
        if not tag[1]:
            begun.append(tag.span())
        elif begun:
            spans.append((begun.pop()[0], tag.end()))
    for name, left in open_.items():
        for start, end in left:
            whole_line = name == "code" and text[end : end + 1] in ("", "\n")
            if (name in _RUNS_ON or whole_line) and text[max(0, start - 1) : start] in ("", "\n"):
                spans.append((start, len(text)))
    return spans


def _of_several_lines(text: str, indented: bytearray) -> bytearray:
    """The indented code that has more than one line."""
    several = bytearray(len(text))
    place = indented.find(1)
    while place != -1:
        end = indented.find(0, place)
        end = len(text) if end == -1 else end
        following = end + 1
        while following < len(text) and indented[following]:
            end = indented.find(0, following)
            end = len(text) if end == -1 else end
            following = end + 1
        if "\n" in text[place:end]:
            cover(several, place, end)
        place = indented.find(1, end) if end < len(text) else -1
    return several
