"""Which values may a number have?

A field's range is part of its type: `epochs: Annotated[float, Above(0, 1e6)]`. No range holds
infinity or NaN, and every range has an upper end: a larger value is a slip.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Annotated, Any

from ste_jax.system.errors import RequestError


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, both among them, but for `other_than`."""

    least: float
    most: float
    other_than: tuple[float, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether a value is in the range."""
        return self.least <= value <= self.most and value not in self.other_than

    def __str__(self) -> str:
        but = "".join(f", other than {value:g}" for value in self.other_than)
        return f"from {self.least:.12g} to {self.most:.12g}{but}"


@dataclass(frozen=True)
class Above(Range):
    """The numbers above `least`, up to `most`."""

    def holds(self, value: float) -> bool:
        """Whether a value is in the range."""
        return super().holds(value) and value > self.least

    def __str__(self) -> str:
        return f"above {self.least:.12g} and at most {self.most:.12g}"


@dataclass(frozen=True)
class Below(Range):
    """The numbers from `least` on, below `most`."""

    def holds(self, value: float) -> bool:
        """Whether a value is in the range."""
        return super().holds(value) and value < self.most

    def __str__(self) -> str:
        return f"at least {self.least:.12g} and below {self.most:.12g}"


def check(value: float, range_: Range, name: str) -> None:
    """Raises `RequestError`, which calls the value by `name`, where it is out of its range."""
    if not range_.holds(value):
        raise RequestError(f"{name}={value} is out of its range; it must be {range_}")


def check_fields(group: object) -> None:
    """Checks all fields of a dataclass whose types hold ranges. Raises as `check`."""
    for name, range_ in _ranges_of(typing.cast(Hashable, type(group))).items():
        check(getattr(group, name), range_, name)


@functools.cache
def _ranges_of(kind: Any) -> dict[str, Range]:
    hints = typing.get_type_hints(kind, include_extras=True).items()
    annotated = ((name, hint) for name, hint in hints if typing.get_origin(hint) is Annotated)
    return {name: typing.get_args(hint)[1] for name, hint in annotated}


MANY = 10**9
"""The upper end of counts: more of anything than there ever is."""

Count = Annotated[int, Range(1, MANY)]
OrNone = Annotated[int, Range(0, MANY)]
"""A count that may be 0, which often switches something off."""
Shards = Annotated[int, Range(1, 99_999)]
"""A number of shards; files' names have room for no more."""
Resamples = Annotated[int, Range(1, 10**6)]
Difficulty = Annotated[int, Range(1, 5)]
Share = Annotated[float, Range(0, 1)]
Probability = Annotated[float, Above(0, 1)]
Temperature = Annotated[float, Range(0, 100)]
Scale = Annotated[float, Above(0, 1e6)]
Weight = Annotated[float, Range(0, 1e6)]
Seconds = Annotated[float, Range(1, 86_400)]
Rate = Annotated[float, Range(0, 10)]
Decay = Annotated[float, Below(0, 1)]
"""A share from 0 up to, but without, 1."""
Seed = Annotated[int, Range(0, 2**63 - 1)]
Axis = Annotated[int, Range(-1, 2**20, other_than=(0,))]
"""The size of a mesh axis; -1: all devices that the other axes leave."""
