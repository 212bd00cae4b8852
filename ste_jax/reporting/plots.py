"""How do a judge's agreement and a loss curve look as pictures?

Pictures are inline SVG, coloured by the page's style sheet, so that they follow its light and dark
mode. Colour never distinguishes series alone: their marks differ, and they are named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ste_jax.reporting.page import Safe, tag

_WIDTH = 720
_LEFT, _RIGHT = 44, 16
_MAX_POINTS = 360


@dataclass(frozen=True)
class Share:
    """A measured share with its 95% interval, or without one."""

    value: float
    interval: tuple[float, float] | None


def share_of(measured: Mapping[str, Any], key: str) -> Share | None:
    """A measure and its interval, as `evaluation.metrics` gives them; None if it is not there."""
    value, interval = measured.get(key), measured.get(f"{key}_ci95")
    return None if value is None else Share(value, tuple(interval) if interval else None)


def agreement_plot(
    judges: Sequence[str],
    series: Mapping[str, Sequence[Share | None]],
    chances: Sequence[float],
) -> Safe:
    """Shares by judge on a scale from 0 to 1: one mark with its interval per judge and series, and
    dotted lines at `chances`."""
    top, bottom = 34, 300
    step = (_WIDTH - _LEFT - _RIGHT) / len(judges)
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _place(tick, 0, 1, bottom, top)
        kind = "chance" if tick in chances else "grid"
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, kind))
        parts.append(tag("text", f"{tick:g}", x=_LEFT - 8, y=y + 4, text_anchor="end"))
    for place, name in enumerate(judges):
        x = _LEFT + (place + 0.5) * step
        parts.append(
            tag("text", name, x=_n(x), y=bottom + 22, text_anchor="middle", class_="strong")
        )
    legend = float(_LEFT)
    for number, (name, shares) in enumerate(series.items()):
        shift = (number - (len(series) - 1) / 2) * min(20.0, step / 5)
        points = [
            (_LEFT + (place + 0.5) * step + shift, share)
            for place, share in enumerate(shares)
            if share is not None
        ]
        at = [(x, _place(share.value, 0, 1, bottom, top)) for x, share in points]
        parts.append(_path(at, f"line thin s{number}"))
        for (x, y), (_, share) in zip(at, points, strict=True):
            parts.append(_share(x, y, share, number, name, bottom, top))
        parts.append(_mark(legend + 6, 12, number))
        parts.append(tag("text", name, x=_n(legend + 17), y=16, class_="strong"))
        legend += 42 + 6.6 * len(name)
    return _svg(bottom + 34, "Agreement by iteration with 95% intervals", parts)


def _share(
    x: float, y: float, share: Share, number: int, name: str, bottom: float, top: float
) -> Safe:
    title = f"{name}: {share.value:.3f}"
    parts = []
    if share.interval is not None:
        low, high = share.interval
        title += f" [{low:.3f}, {high:.3f}]"
        ends = [_place(end, 0, 1, bottom, top) for end in (low, high)]
        parts.append(_line(x, ends[0], x, ends[1], f"whisker s{number}"))
        parts += [_line(x - 4, end, x + 4, end, f"whisker s{number}") for end in ends]
    return tag("g", tag("title", title), parts, _mark(x, y, number))


def loss_plot(
    steps: Sequence[tuple[float, float]],
    validations: Sequence[tuple[float, float]],
    best_step: float | None,
) -> Safe:
    """Training loss by step above, validation accuracy by step below, on one axis of steps."""
    first = min(x for x, _ in [*steps, *validations])
    last = max(x for x, _ in [*steps, *validations])
    left, right = _LEFT, _WIDTH - _RIGHT
    top, middle = 26, 170
    panel, bottom = (204, 284) if validations else (0, middle)

    def across(step: float) -> float:
        return _place(step, first, last, left, right)

    parts = [tag("text", "training loss", x=left, y=14, class_="strong")]
    if steps:
        curve, width = _thin(steps)
        ticks = _ticks(min(y for _, y in curve), max(y for _, y in curve))
        low, high = ticks[0], ticks[-1]
        for tick in ticks:
            y = _place(tick, low, high, middle, top)
            parts.append(_line(left, y, right, y, "grid"))
            parts.append(tag("text", f"{tick:g}", x=left - 8, y=_n(y + 4), text_anchor="end"))
        at = [(across(x), _place(y, low, high, middle, top)) for x, y in curve]
        parts.append(_path(at, "line s0") if len(at) > 1 else _mark(*at[0], 0))
        if width > 1:
            remark = f"means of {width} steps"
            parts.append(tag("text", remark, x=right, y=14, text_anchor="end"))
    if validations:
        parts.append(tag("text", "validation accuracy", x=left, y=panel - 8, class_="strong"))
        for tick in (0.0, 0.5, 1.0):
            y = _place(tick, 0, 1, bottom, panel)
            parts.append(_line(left, y, right, y, "chance" if tick == 0.5 else "grid"))
            parts.append(tag("text", f"{tick:g}", x=left - 8, y=_n(y + 4), text_anchor="end"))
        at = [(across(x), _place(y, 0, 1, bottom, panel)) for x, y in validations]
        parts.append(_path(at, "line s2"))
        for (x, y), (step, value) in zip(at, validations, strict=True):
            title = tag("title", f"step {step:g}: {value:.3f}")
            parts.append(tag("g", title, _mark(x, y, 2)))
    if best_step is not None and first <= best_step <= last:
        x = across(best_step)
        parts.append(_line(x, top, x, bottom, "chance"))
        anchor = "end" if x > _WIDTH / 2 else "start"
        beside = x - 6 if anchor == "end" else x + 6
        parts.append(tag("text", "kept", x=_n(beside), y=top + 10, text_anchor=anchor))
    for step in sorted({first, last}):
        anchor = "start" if step == first else "end"
        name = f"step {step:g}"
        parts.append(tag("text", name, x=_n(across(step)), y=bottom + 20, text_anchor=anchor))
    return _svg(bottom + 28, "Training loss and validation accuracy by step", parts)


def _svg(height: float, description: str, parts: Sequence[Safe]) -> Safe:
    return tag(
        "svg", parts, viewBox=f"0 0 {_WIDTH} {_n(height)}", role="img", aria_label=description
    )


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    """The place on start..end of a `value` on low..high."""
    return start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Safe:
    return tag("line", x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2), class_=kind)


def _path(points: Sequence[tuple[float, float]], kind: str) -> Safe:
    return tag("polyline", points=" ".join(f"{_n(x)},{_n(y)}" for x, y in points), class_=kind)


def _mark(x: float, y: float, number: int) -> Safe:
    """A disc, a square or a triangle."""
    kind = f"mark s{number}"
    if number == 0:
        return tag("circle", cx=_n(x), cy=_n(y), r=4.5, class_=kind)
    if number == 1:
        return tag("rect", x=_n(x - 4), y=_n(y - 4), width=8, height=8, class_=kind)
    corners = f"{_n(x)},{_n(y - 5)} {_n(x + 5)},{_n(y + 4)} {_n(x - 5)},{_n(y + 4)}"
    return tag("polygon", points=corners, class_=kind)


def _thin(points: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    """Thins a curve to as many points as a reader can distinguish; returns the means, and how many
    neighbours each is of."""
    width = math.ceil(len(points) / _MAX_POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
    return means, width


def _ticks(low: float, high: float) -> list[float]:
    """A few round numbers that enclose low..high."""
    size = max(abs(low), abs(high), 1e-3)
    span = high - low if high - low > 1e-6 * size else size
    size = 10.0 ** math.floor(math.log10(span / 3))
    size *= next((factor for factor in (1, 2, 5) if span / (size * factor) <= 4), 10)
    first, last = math.floor(low / size), math.ceil(high / size)
    return [round(size * tick, 12) for tick in range(first, max(last, first + 1) + 1)]
