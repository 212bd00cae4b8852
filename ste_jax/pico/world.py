"""What is a task of pico's world, how is one drawn, phrased, understood, changed and kept apart?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, Literal

from ste_jax.pico import kinds
from ste_jax.pico.kinds import BY_NAME, KINDS, Kind, Solution, Values, listed
from ste_jax.system import hashing

Share = Literal["known", "dev", "heldout"]

_PATTERNS = {
    "number": r"\d+",
    "numbers": r"\d+(?:, \d+)+",
    "thing": r"[a-z]+",
    "name": "|".join(kinds.NAMES),
    "month": "|".join(kinds.MONTHS),
}
_SCENERY = ("name", "thing")
"""Places of phrasings whose value does not affect the answer."""
_PLACE = re.compile(r"\{([a-z]+)(\d?)\}")


@dataclass(frozen=True)
class Task:
    """One task: its kind, its operands, and which of the kind's phrasings says it."""

    kind: str
    operands: tuple[tuple[str, Any], ...]
    phrasing: int = 0

    @property
    def values(self) -> Values:
        """The operands by name."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self.operands}

    @property
    def instruction(self) -> str:
        """What the user writes."""
        shown = {}
        for name, value in self.values.items():
            if isinstance(value, list):
                value = listed(value)
            shown[name] = value
        return BY_NAME[self.kind].phrasings[self.phrasing].format(**shown)

    @property
    def solution(self) -> Solution:
        """What is right."""
        return BY_NAME[self.kind].solve(self.values)

    @property
    def level(self) -> int:
        """The difficulty, from 1 to 3."""
        return BY_NAME[self.kind].level(self.values)

    @property
    def category(self) -> str:
        """The category of its kind."""
        return BY_NAME[self.kind].category

    @property
    def identity(self) -> str:
        """A text that is the same for all phrasings, names and things, and for operands in another
        order where that means the same."""
        values = {key: value for key, value in self.values.items() if key not in _SCENERY}
        if BY_NAME[self.kind].symmetric:
            return f"{self.kind} {sorted(values.get('numbers') or values.values())}"
        return f"{self.kind} {sorted(values.items())}"

    @property
    def share(self) -> Share:
        """The share of the world that the task belongs to. Its identity decides it, so that a
        held-out task is new in every phrasing."""
        place = hashing.number(self.identity, 4) % 20
        return "heldout" if place < 2 else "dev" if place == 2 else "known"


def make_task(kind: Kind, values: Values, phrasing: int) -> Task:
    """A task from its operands."""
    frozen = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(values.items()))
    return Task(kind.name, frozen, phrasing)


def draw_task(draw: Random, share: Share, kind: Kind | None = None) -> Task:
    """A random task that belongs to a share."""
    wanted = kind or draw.choice(KINDS)
    while True:
        values = wanted.draw(draw, draw.randint(1, 3))
        task = make_task(wanted, values, draw.randrange(len(wanted.phrasings)))
        if task.share == share:
            return task


@dataclass(frozen=True)
class Tasks:
    """A source of random tasks: a share of the world, and the kinds."""

    share: Share
    kinds: Sequence[Kind] = KINDS
    """The kinds to draw from; one that is named twice is drawn twice as often."""

    def draw(self, draw: Random) -> Task:
        """A random task."""
        return draw_task(draw, self.share, draw.choice(self.kinds))


@lru_cache(maxsize=1)
def _readers() -> tuple[tuple[re.Pattern[str], Kind, int], ...]:
    found = []
    for kind in KINDS:
        for index, phrasing in enumerate(kind.phrasings):
            pattern, seen = "", set()
            for part in re.split(r"(\{[a-z]+\d?\})", phrasing.rstrip(".?")):
                place = _PLACE.fullmatch(part)
                if place is None:
                    pattern += re.escape(part)
                elif part in seen:
                    pattern += f"(?P={place[1]}{place[2]})"
                else:
                    seen.add(part)
                    pattern += f"(?P<{place[1]}{place[2]}>{_PATTERNS[place[1]]})"
            found.append((re.compile(pattern + "[.?!]?"), kind, index))
    return tuple(found)


def understand(instruction: str) -> Task | None:
    """The task that an instruction states; None if it states none of this world. The mark at the
    end may be another or missing."""
    for pattern, kind, phrasing in _readers():
        match = pattern.fullmatch(instruction.strip())
        if match:
            values = {name: _value(name, text) for name, text in match.groupdict().items()}
            task = make_task(kind, values, phrasing)
            return task if kind.possible(values) else None
    return None


def _value(name: str, text: str) -> Any:
    if name == "numbers":
        return [int(each) for each in text.split(", ")]
    return int(text) if name.startswith("number") else text


def changes(task: Task, draw: Random) -> Iterator[Task]:
    """Endless similar but different tasks: other operands, or the related question asked."""
    kind = BY_NAME[task.kind]
    while True:
        values, new = task.values, kind
        if kind.related and draw.random() < 0.3:
            new = BY_NAME[kind.related]
            # the larger number first: a difference needs it so
            values = dict(zip(values, sorted(values.values(), reverse=True), strict=True))
        else:
            fresh = kind.draw(draw, task.level)
            names = [name for name in values if name not in _SCENERY]
            if draw.random() < 0.4:
                values.update({name: fresh[name] for name in names})
            else:
                name = draw.choice(names)
                values[name] = _changed(name, values, fresh, draw)
        phrasing = task.phrasing if draw.random() < 0.5 else draw.randrange(len(new.phrasings))
        changed = make_task(new, values, phrasing % len(new.phrasings))
        if new.possible(values) and changed.solution.answer != task.solution.answer:
            yield changed


def _changed(name: str, values: Values, fresh: Values, draw: Random) -> Any:
    """Another value for one operand: most often a random one, sometimes a near one."""
    value = values[name]
    if isinstance(value, int) and draw.random() < 0.25:
        near = max(1, value + draw.choice((-10, -3, -2, -1, 1, 2, 3, 10)))
        return near if len(str(near)) == len(str(value)) else fresh[name]
    if isinstance(value, list):
        value = list(value)
        at = draw.randrange(len(value))
        others = [each for each in fresh[name] if each not in value] or fresh[name]
        value[at] = draw.choice(others)
        return value
    return fresh[name]
