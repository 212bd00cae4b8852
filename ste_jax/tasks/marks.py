"""Which of the verdict marks in a text are the judge's own?

Text that the judge quotes from an answer, or shows as code, may hold a verdict mark too, and that
mark is no verdict of the judge's. `ste_jax.prompts.quoting` finds what is quoted. A task says what
its marks look like, by a pattern whose first group is what the mark says.
"""

from __future__ import annotations

import re
from bisect import bisect_left

from ste_jax.prompts.markdown import lines
from ste_jax.prompts.quotation_marks import PAIRS
from ste_jax.prompts.quoting import quoted, readable
from ste_jax.prompts.thoughts import split


def own_marks(text: str, mark: re.Pattern[str], finish_reason: str = "stop") -> list[str]:
    """What the judge's own marks say, in order.

    The judge's own are those outside its thoughts, quotations (in the marks of any language, over
    several paragraphs too), block quotes and code (inline, fenced, indented, or after a fence that
    is never closed), HTML's among them; and one that stands alone on the last line, even in
    quotation marks or backticks, for some prompts ask for `"[[A]]"`. Of a text that was cut off
    (`finish_reason` "length") a mark counts only if it stands alone on its line: what was to follow
    might have taken it back. A mark still stands alone with emphasis, a heading's or a list's sign
    or a full stop beside it. A text that ends in its thoughts has no mark of the judge's own. The
    time is linear in the text.
    """
    parts = split(text)
    if parts.open:
        return []
    return [said for _, said in _own(readable(parts.said), mark, finish_reason == "length")]


def lines_of_marks(text: str, mark: re.Pattern[str]) -> list[int]:
    """Where the lines of `text` end that hold a mark of its own and nothing else, in order.

    Places are counted from the end of the text, since thoughts at its beginning are left out.
    """
    said = readable(split(text).said)
    found = _own(said, mark, True)
    behind = sum(1 for _ in mark.finditer(said))
    line_ends = [end for _, end in lines(text)]
    starts = [each.start() for each in mark.finditer(text)][-behind:] if behind else []
    return [line_ends[bisect_left(line_ends, starts[n])] for n, _ in found if n < len(starts)]


def _own(text: str, mark: re.Pattern[str], cut_off: bool) -> list[tuple[int, str]]:
    """The judge's own among the marks of a text: the number of each among all marks, and what it
    says."""
    if not mark.search(text):
        return []
    hidden = quoted(text, mark)
    line_ends = [end for _, end in lines(text)]
    last = len(text.rstrip())
    own = []
    for n, each in enumerate(mark.finditer(text)):
        row = bisect_left(line_ends, each.end())
        start = line_ends[row - 1] + 1 if row else 0
        alone = _alone(text, start, each.span(), line_ends[row])
        ends = alone and line_ends[row] >= last and not hidden.around[each.start()]
        if (ends or not hidden.anyhow[each.start()]) and (alone or not cut_off):
            own.append((n, each[1]))
    return own


_BESIDE = 60
"""How many characters beside a mark on its line can be its decoration, at the most."""
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
