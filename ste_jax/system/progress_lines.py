"""In which words is it said how far some work is: for a terminal, for a log file, for a program?"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_BAR = 20
_SHORTEST_BAR = 8
_BYTES = "bytes"
"""The unit of work that is counted in bytes."""


class Figure(NamedTuple):
    """A figure of some work, as a number for programs and as a text for people."""

    name: str
    value: float
    text: str


@dataclass(frozen=True, kw_only=True)
class State:
    """How far some work is."""

    title: str
    seconds: float
    """How long it has taken so far."""
    done: int = 0
    total: int | None = None
    """None: the work has no parts that are counted."""
    unit: str = "rows"
    rate: float | None = None
    """Parts per second, of late; None: not known yet."""
    figures: Sequence[Figure] = ()
    within: str = ""
    """What it is waiting for at the moment: `compiling decode`."""

    @property
    def seconds_left(self) -> float | None:
        """How long it will take from here; None if that is not known."""
        if self.total is None or not self.rate or self.done >= self.total or self.within:
            return None  # while it waits for something, its rate says nothing
        return (self.total - self.done) / self.rate


def drawn(state: State, width: int) -> str:
    """A line of at most `width` columns with a bar. What has no room is left out, the least
    important first."""
    if state.total is None:
        return cut(f"{state.title}  {duration(state.seconds)}", width)
    tail = [_count(state)]
    wanted = [state.within or _left(state), _rate(state), *(f.text for f in state.figures)]
    room = width - columns(state.title) - _SHORTEST_BAR - len("  []  ")
    for text in wanted:
        if text and columns("  ".join([*tail, text])) <= room:
            tail.append(text)
    ends = "  ".join(tail)
    bar = min(_BAR, _SHORTEST_BAR + room - columns(ends))
    if bar < _SHORTEST_BAR:
        return cut(f"{state.title}  {ends}", width)
    full = bar * min(state.done, state.total) // max(state.total, 1)
    return f"{state.title}  [{'#' * full:{bar}}]  {ends}"


def plain(state: State) -> str:
    """A line for a log file."""
    if state.total is None:
        return f"{state.title}: {duration(state.seconds)} so far"
    percent = f" ({state.done / max(state.total, 1):.0%})"
    parts = [_count(state, " of ") + percent, _rate(state), *(f.text for f in state.figures)]
    left = _left(state) or f"{duration(state.seconds)} so far"
    return f"{state.title}: {', '.join(part for part in (*parts, state.within, left) if part)}"


def begun(state: State, began_with: int = 0) -> str:
    """A line that says that some work has begun; `began_with` parts were done before."""
    if state.total is None:
        return state.title
    there = f", {began_with:,} of {state.total:,} are there" if began_with else ""
    return f"{state.title}: {amount(state.total - began_with, state.unit)} to do{there}"


def ended(
    state: State, began_with: int = 0, *, failed: bool = False, width: float = math.inf
) -> str:
    """A line that says what some work did, and how long it took. Figures for which there is no room
    in `width` columns are left out."""
    took = duration(state.seconds)
    if state.total is None:
        return f"{state.title}: {'broken off after ' if failed else ''}{took}"
    if failed:
        return f"{state.title}: broken off at {_count(state, ' of ')} after {took}"
    made = state.done - began_with
    pace = _pace(made / state.seconds, state.unit) if made and state.seconds >= 1 else ""
    line = f"{state.title}: {amount(made, state.unit)} in {took}"
    for more in (pace, *(figure.text for figure in state.figures)):
        if more and columns(f"{line}, {more}") <= width:
            line += f", {more}"
    return line


def fields(state: State) -> dict[str, Any]:
    """The same as values for a program; what is not known is absent."""
    found: dict[str, Any] = {"stage": state.title, "seconds": round(state.seconds, 1)}
    if state.total is not None:
        found |= {"done": state.done, "of": state.total, "unit": state.unit}
    if state.rate is not None:
        found["per_second"] = round(state.rate, 4)
    if state.seconds_left is not None:
        found["seconds_left"] = round(state.seconds_left)
    found |= {figure.name: figure.value for figure in state.figures}
    return found | ({"within": state.within} if state.within else {})


def duration(seconds: float) -> str:
    """A time for people: `0.4 s`, `12 s`, `2:40`, `1:02:40`, `2 d 3 h`."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours}:{minutes % 60:02}:{whole % 60:02}"
    return f"{minutes}:{whole % 60:02}" if minutes else f"{whole} s"


def amount(number: int, unit: str) -> str:
    """A number of parts in words: `1 pair`, `1,004 pairs`, `1.2 GB`."""
    if unit == _BYTES:
        return _bytes(number)
    return f"{number:,} {unit.removesuffix('s') if number == 1 else unit}"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(bool(unicodedata.combining(each)) for each in text)


def cut(text: str, width: int) -> str:
    """The text, with its end left out where it would take more than `width` columns."""
    if columns(text) <= width:
        return text
    while text and columns(text) > width - 3:
        text = text[:-1]
    return (text + "...")[: max(width, 0)]


def _count(state: State, of: str = "/") -> str:
    total = state.total or 0
    if state.unit == _BYTES:
        return f"{_bytes(state.done)}{of}{_bytes(total)}"
    return f"{state.done:,}{of}{amount(total, state.unit)}"


def _left(state: State) -> str:
    left = state.seconds_left
    return "" if left is None else f"{duration(math.ceil(left))} left"


def _rate(state: State) -> str:
    return "" if state.rate is None else _pace(state.rate, state.unit)


def _pace(rate: float, unit: str) -> str:
    if unit == _BYTES:
        return f"{_bytes(rate)}/s"
    if 0 < rate < 0.1:
        return f"{rate * 3600:.0f} an hour" if rate < 1 / 600 else f"{rate * 60:.1f} a minute"
    digits = 0 if rate >= 100 else 1 if rate >= 1 else 2
    return f"{rate:,.{digits}f}/s"


def _bytes(number: float) -> str:
    for name in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {name}"
        number /= 1000
    return f"{number:.3g} TB"
