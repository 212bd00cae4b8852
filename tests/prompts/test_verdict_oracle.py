"""Judgments put together out of pieces of which it is known what they say.

What is right is told by the pieces alone: each says which marks are the judge's own and which of
them have their line to themselves. Nothing here reads a text.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ste_jax.prompts.thoughts import split
from ste_jax.tasks.pairwise import parse_verdict

MEANT = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie", "[[tie]]": "tie"}
MARKS = st.sampled_from([*MEANT, "[[A]]", "[[B]]"])
SAFE = ["better", "INCORRECT", "(A)", "7/10", "it's", "**bold**", "naïve", "x < y", "第一", "[A]"]
STRAY = [*SAFE, '5"', "6'", "the users'", "don't", "'90s", "A's", '"so"', "“so”", "«so»", "`x`"]
PAIRS = [
    *('""', "“”", "„“", "„”", "””", "‘’", "‚‘", "''", "«»", "»«", "»»", "‹›", "›‹", "「」", "『』"),
    *("《》", "〈〉", "＂＂", "❝❞", "``"),
]
TAGS = ["code", "q", "pre", "blockquote", "kbd", "samp"]
ENTITIES = [
    ("&quot;", "&quot;"),
    ("&ldquo;", "&rdquo;"),
    ("&#8222;", "&#8220;"),
    ("&#xAB;", "&#xBB;"),
]


@dataclass(frozen=True)
class Piece:
    """Some lines of a judgment, the marks in them that are its own, and those of the latter that
    stand on a line of their own."""

    text: str
    own: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()


def phrase(words: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), min_size=1, max_size=4).map(" ".join)


@st.composite
def quotation(draw: st.DrawFn) -> str:
    """A mark within something that quotes it."""
    inner = f"{draw(phrase(SAFE))} {draw(MARKS)} {draw(phrase(SAFE))}"
    inner = draw(st.sampled_from([inner, draw(MARKS), f"{draw(MARKS)} {draw(phrase(SAFE))}"]))
    kind = draw(st.sampled_from(["marks", "tag", "entity"]))
    if kind == "tag":
        tag = draw(st.sampled_from(TAGS))
        return f"<{tag}>{inner}</{tag}>"
    if kind == "entity":
        opening, closing = draw(st.sampled_from(ENTITIES))
        return f"{opening}{inner}{closing}"
    opening, closing = draw(st.sampled_from(PAIRS))
    if opening == "'":
        inner = inner.replace("it's", "it is")
    if opening in '«"＂' and draw(st.booleans()):
        if opening != "«":
            inner = inner.replace("7/10", "seven")  # before a space and a mark, 10 inches
        space = draw(st.sampled_from([" ", "\n"])) if opening != "«" else " "
        inner = f"{space}{inner}{space}"
    return f"{opening}{inner}{closing}"


@st.composite
def paragraph(draw: st.DrawFn) -> Piece:
    parts, own = [draw(phrase(SAFE))], []
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            parts.append(draw(quotation()))
        elif draw(st.booleans()):
            own.append(draw(MARKS))
            parts.append(own[-1])
        parts.append(draw(phrase(SAFE)))
    return Piece(draw(st.sampled_from(["", "## ", "**So:** "])) + " ".join(parts), tuple(own))


@st.composite
def code(draw: st.DrawFn) -> Piece:
    lines = [f"{draw(phrase(SAFE))} {draw(MARKS)}", draw(MARKS), draw(phrase(SAFE))]
    kind = draw(st.sampled_from(["fence", "indent", "quote", "html"]))
    if kind == "fence":
        fence = draw(st.sampled_from(["```", "~~~~", "`````"]))
        return Piece("\n".join([f"{fence}text", *lines, fence]))
    if kind == "html":
        tag = draw(st.sampled_from(["pre", "blockquote", "code"]))
        return Piece("\n".join([f"<{tag}>", *lines, f"</{tag}>"]))
    before = draw(st.sampled_from(["    ", "\t"])) if kind == "indent" else "> "
    lazy = kind == "quote" and draw(st.booleans())
    goes_on = f"\n{draw(phrase(SAFE))} {draw(MARKS)}" if lazy else ""
    return Piece("\n".join(before + line for line in lines) + goes_on)


@st.composite
def long_quotation(draw: st.DrawFn) -> Piece:
    opening, closing = draw(st.sampled_from(PAIRS[:14]))
    tall = opening == '"' and draw(st.booleans())
    heights = [" 5'10\" tall" if tall else "", "", ""]
    again = opening if opening in '"“' and draw(st.booleans()) else ""
    between = f"\n\n{again}".join(
        f"{draw(phrase(SAFE)).replace(chr(39), '')} {draw(MARKS)} so{height}" for height in heights
    )
    return Piece(f"It says: {opening}{between}.{closing} So far.")


@st.composite
def verdict(draw: st.DrawFn) -> Piece:
    mark = draw(MARKS)
    around = st.sampled_from(["{}", "**{}**", "### {}", "_{}_", "{}.", "- **{}**", "<b>{}</b>"])
    return Piece(draw(around).format(mark), (mark,), (mark,))


@st.composite
def strays(draw: st.DrawFn) -> Piece:
    """Words among which quotation marks pair only with each other, or with none."""
    return Piece(draw(phrase(STRAY)))


PIECES = st.lists(
    paragraph() | paragraph() | code() | long_quotation() | verdict() | strays(), max_size=6
)
THOUGHTS = st.sampled_from(
    [
        "",
        "",
        "<think>\n{}\n</think>\n\n",
        "{}\n</think>\n\n",
        "[THINK]{}[/THINK]",
        "{}\n\n```py\nx\n</think>\n\n",
        "hm [[A]] so </think> ",
        "<think>\n\n</think>\n\n",
    ]
)
LAST = st.sampled_from(["", "", '"{}"', "`{}`", "„{}“", "«{}»", "「{}」", '**"{}"**', "“{}”."])


@settings(max_examples=400, deadline=None, derandomize=True)
@example([Piece("    x\n    [[A]]\n    y")], [], "<think>\n{}\n</think>\n\n", "", "[[A]]", False)
@given(PIECES, st.lists(strays() | verdict(), max_size=3), THOUGHTS, LAST, MARKS, st.booleans())
def test_the_verdict_is_what_the_pieces_say(
    pieces: list[Piece], thought: list[Piece], around: str, last: str, mark: str, cut_off: bool
) -> None:
    pieces = [
        *([Piece("So it is.")] if around.endswith(" ") else []),  # goes on with that line
        *pieces,
        *([Piece("So it is."), Piece(last.format(mark), (mark,), (mark,))] if last else []),
    ]
    said = "\n\n".join(piece.text for piece in pieces)
    text = around.replace("{}", "\n\n".join(piece.text for piece in thought) or "hm") + said
    marks = [mark for piece in pieces for mark in (piece.alone if cut_off else piece.own)]
    meant = {MEANT[mark] for mark in marks}
    right = meant.pop() if len(meant) == 1 else None
    failure = None if right else "conflict" if meant else "cut_off" if cut_off else "no_verdict"
    reason = "length" if cut_off else "stop"
    assert parse_verdict(text, reason) == (right, failure), text
    assert parse_verdict(text.replace("\n", "\r\n"), reason) == (right, failure)
    if around:
        assert split(text).said.strip() == said.strip()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(PIECES, st.sampled_from(["<think>\n", "[THINK]", "<reasoning>\n"]))
def test_nothing_is_said_in_open_thoughts(pieces: list[Piece], opening: str) -> None:
    text = opening + "\n\n".join(piece.text for piece in pieces)
    assert parse_verdict(text) == (None, "no_verdict")
    assert split(text).open and not split(text).said


HOSTILE = [
    *("`", '"', "'", "«", "»“", "[[A]]", '"[[A]] ', "[", "<", "<code>", "<pre>\n", "&quot;", "``"),
    *(
        "<think>",
        "</think> ",
        "<thought>",
        "`</think>` ",
        "a </think>, b ",
        "a </think> b ",
        "```\n</think>\n",
        "> x\ny\n",
        ' " ',
        '\n\n"a 5" b',
        "`` ` ",
        '5" ',
        "# ",
        "- ",
        "\n\n“a",
        "「",
    ),
    *("    x\n", "~", "a‘b’s ", '"a 5" '),
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_is_linear_on_any_text(piece: str) -> None:
    times = []
    for size in (12_500, 200_000):
        text = '"a ' + piece * (size // len(piece)) + "` «[[A]]»\n\n[[A]]"
        best = 1e9
        for _ in range(1 if size > 100_000 else 3):
            began = time.process_time()
            parse_verdict(text)
            best = min(best, time.process_time() - began)
        times.append(best)
    # sixteenfold if linear, 256-fold if not
    assert times[1] < 64 * times[0] + 0.5
