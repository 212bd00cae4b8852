"""Which values may a number have?

A knob's range stands in its type, beside its default: `epochs: Annotated[float, Above(0, 1e6)]`.
No range holds an infinity or what is no number, and none is open at the top: a value that large is
a slip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


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
    """Likewise without `least`."""

    def holds(self, value: float) -> bool:
        """Whether a value is in the range."""
        return super().holds(value) and value > self.least

    def __str__(self) -> str:
        return f"above {self.least:.12g} and at most {self.most:.12g}"


@dataclass(frozen=True)
class Below(Range):
    """Likewise without `most`."""

    def holds(self, value: float) -> bool:
        """Whether a value is in the range."""
        return super().holds(value) and value < self.most

    def __str__(self) -> str:
        return f"at least {self.least:.12g} and below {self.most:.12g}"


MANY = 10**9
"""More of anything than there is."""

Count = Annotated[int, Range(1, MANY)]
OrNone = Annotated[int, Range(0, MANY)]
"""A count that 0 switches off, or that may be 0."""
Shards = Annotated[int, Range(1, 99_999)]
"""So many as their files' names have room for."""
Resamples = Annotated[int, Range(1, 10**6)]
Difficulty = Annotated[int, Range(1, 5)]
Share = Annotated[float, Range(0, 1)]
Probability = Annotated[float, Above(0, 1)]
Temperature = Annotated[float, Range(0, 100)]
Scale = Annotated[float, Above(0, 1e6)]
Weight = Annotated[float, Range(0, 1e6)]
Rate = Annotated[float, Range(0, 10)]
Decay = Annotated[float, Below(0, 1)]
"""A share that is not the whole."""
Seed = Annotated[int, Range(0, 2**63 - 1)]
Axis = Annotated[int, Range(-1, 2**20, other_than=(0,))]
"""A size of a mesh; -1: what is left of the devices."""
