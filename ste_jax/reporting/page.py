"""How is a text put into a page so that it can never become markup?

All markup comes from one function. `tag` builds an element, and escapes every child and attribute
that it did not make itself (`Safe`): texts of a model, a data set or a config have no other way
into the page. The page needs no network and no script, and its policy forbids both.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from ste_jax.system.terminal import harmless

_CLIP = 6000


class Safe(str):
    """Markup that `tag` made."""


Child: TypeAlias = "str | Iterable[Child]"


def escape(text: str) -> Safe:
    """A text as markup that shows it; control characters and marks of direction are shown by
    number. Markup that is `Safe` already is returned as it is."""
    if isinstance(text, Safe):
        return text
    return Safe(html.escape(harmless(text), quote=True))


def tag(name: str, *children: Child, **attributes: Any) -> Safe:
    """An element. `class_="x"` gives class, `stroke_width=2` gives stroke-width; None is left out,
    True gives a bare attribute."""
    written = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {key}")
        elif value is not None:
            written.append(f' {key}="{escape(str(value))}"')
    return Safe(f"<{name}{''.join(written)}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Safe:
    """Elements and texts joined; nested lists are flattened, and texts are escaped."""
    parts = (escape(c) if isinstance(c, str) else join(c) for c in children)
    return Safe("".join(parts))


def words(text: str, **attributes: Any) -> Safe:
    """A block of text from outside: line breaks are kept, its direction is isolated, and its length
    is bounded."""
    more = len(text) - _CLIP
    if more > 0:
        text = f"{text[:_CLIP]}\n[... {more:,} characters more]"
    return tag("div", text, class_="words", dir="auto", **attributes)


def line(text: str, limit: int = 110) -> str:
    """The beginning of a text as one line of at most `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "\u2026"


def table(header: Sequence[str], body: Iterable[Sequence[Child]]) -> Safe:
    """A table whose first column names the row; wide ones scroll by themselves."""
    head = tag("tr", [tag("th", _short(name), scope="col") for name in header])
    rows = [
        tag("tr", tag("th", _short(row[0]), scope="row"), [tag("td", _short(c)) for c in row[1:]])
        for row in body
    ]
    inner = tag("table", tag("thead", head), tag("tbody", rows))
    return tag("div", inner, class_="scroll")


def _short(cell: Child) -> Child:
    return line(cell) if isinstance(cell, str) and not isinstance(cell, Safe) else cell


def section(title: str, *children: Child) -> Safe:
    """A section of the page under its heading."""
    return tag("section", tag("h2", title), *children)


def note(text: Child) -> Safe:
    """A remark in small print."""
    return tag("p", text, class_="note")


def page(title: str, *children: Child) -> str:
    """A whole document."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"{tag('title', title)}\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"{tag('main', *children)}\n</body>\n</html>\n"
    )


_CSS = """
:root { --back: #fbfbfa; --card: #ffffff; --ink: #1d2126; --soft: #626b76; --rule: #dfe2e6;
  --s0: #2563c9; --s1: #c2570c; --s2: #0f8a63; --good: #0f7a55; --bad: #b3362b; --bar: #b9cdef; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --card: #1b1f25; --ink: #e4e7eb;
  --soft: #98a2ae; --rule: #323941; --s0: #7fb0ff; --s1: #f2a35e; --s2: #5fd0a5; --good: #5fd0a5;
  --bad: #ff9a8e; --bar: #35507c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
h4 { font-size: .8rem; margin: 1rem 0 .3rem; color: var(--soft); font-weight: 600; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1.25rem 1.4rem; margin-top: 1.25rem; }
p { margin: .5rem 0; max-width: 46rem; }
.note { color: var(--soft); font-size: .87rem; }
.lead { font-size: 1.05rem; }
.warn { color: var(--bad); }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem 0 .28rem 1.1rem; text-align: right; vertical-align: top;
  white-space: nowrap; }
th { font-weight: 500; }
thead th { color: var(--soft); font-weight: 400; white-space: normal;
  border-bottom: 1px solid var(--rule); }
th:first-child { text-align: left; padding-left: 0; }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
table.facts th { color: var(--soft); }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.funnel { width: 100%; }
table.funnel td:nth-child(3) { width: 34%; padding-top: .5rem; }
table.funnel td:nth-child(4) { text-align: left; color: var(--soft); white-space: normal; }
.bar { display: flex; height: .8rem; border-radius: 3px; overflow: hidden; }
.bar i { background: var(--bar); }
.key { display: inline-block; width: .75rem; height: .75rem; border-radius: 3px;
  margin: 0 .35rem -1px 1rem; }
.key:first-child { margin-left: 0; }
i.own { background: var(--s0) !important; } i.force { background: var(--s1) !important; }
i.none { background: var(--rule) !important; }
svg { display: block; width: 100%; height: auto; max-width: 46rem; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; }
svg text.strong { fill: var(--ink); }
svg .grid { stroke: var(--rule); } svg .chance { stroke: var(--soft); stroke-dasharray: 2 5; }
svg .s0 { stroke: var(--s0); } svg .s1 { stroke: var(--s1); } svg .s2 { stroke: var(--s2); }
svg .s0.mark { fill: var(--s0); } svg .s1.mark { fill: var(--s1); }
svg .s2.mark { fill: var(--s2); }
svg .line { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
svg .whisker { stroke-width: 1.75; } svg .thin { opacity: .45; }
details { border-top: 1px solid var(--rule); padding: .5rem 0; }
details details { border: 0; padding: .15rem 0 .15rem 1rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.pill { font-size: .78rem; border: 1px solid currentColor; border-radius: 99px;
  padding: .05rem .55rem; margin-right: .5rem; color: var(--soft); white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.words { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; font-size: .9rem;
  background: var(--back); border: 1px solid var(--rule); border-radius: 6px;
  padding: .55rem .75rem; max-height: 24rem; overflow-y: auto; }
.words.code { font: .82rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
.answers { display: grid; gap: 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.answers > div { min-width: 0; }
"""
