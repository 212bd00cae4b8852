"""Which row runs in which slot of a shape?

Plain Python, no device. A shape has groups, each of which holds one prompt at a time, and every
group has slots for rows of that prompt. Rows wait by prompt, in the order in which the prompts
came. Where a row runs never changes its result, so this is about speed only: a prompt's prefix is
copied into as few groups as possible, and no slot stands idle while a row can be put there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True)
class Placement(Generic[Row]):
    """Rows to be started in slots of one group; `fill` if the group must first be given the
    prompt.
    """

    group: int
    prompt: Hashable
    fill: bool
    rows: tuple[tuple[int, Row], ...]
    """(slot, row)."""


class SlotSchedule(Generic[Row]):
    """The slots of one shape and the rows that wait for them."""

    def __init__(self, groups: int, group_size: int) -> None:
        self._holds: list[Hashable | None] = [None] * groups
        self._slots: list[list[Row | None]] = [[None] * group_size for _ in range(groups)]
        self._waiting: dict[Hashable, deque[Row]] = {}

    def add(self, prompt: Hashable, row: Row) -> None:
        """Queues a row of `prompt` (any name that equal prompts share)."""
        self._waiting.setdefault(prompt, deque()).append(row)

    def place(self) -> list[Placement[Row]]:
        """Gives waiting rows to free slots.

        They go first to groups that run their prompt already, then to groups that still hold it,
        then to the other empty groups: one for each prompt that has none, in order, and what is
        left for the prompts with the most rows waiting.
        """
        placements = []
        for group in self._groups(empty=False) + self._groups(empty=True):
            prompt = self._holds[group]
            if prompt in self._waiting:
                placements.append(self._start(group, prompt, fill=False))
        for group in self._groups(empty=True):
            prompt = self._next_prompt()
            if prompt is None:
                break
            placements.append(self._start(group, prompt, fill=True))
        return [placement for placement in placements if placement.rows]

    def finish(self, group: int, slot: int) -> None:
        """Frees a slot."""
        self._slots[group][slot] = None

    def forget(self) -> None:
        """Forgets which group holds which prompt; nothing may be running."""
        self._holds = [None] * len(self._holds)

    def running(self) -> list[tuple[int, int, Row]]:
        """(group, slot, row) of all that run."""
        return [
            (group, slot, row)
            for group, slots in enumerate(self._slots)
            for slot, row in enumerate(slots)
            if row is not None
        ]

    @property
    def waiting(self) -> int:
        """Number of rows that have no slot yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._waiting and not self.running()

    def _groups(self, *, empty: bool) -> list[int]:
        return [
            group
            for group, slots in enumerate(self._slots)
            if all(row is None for row in slots) == empty
        ]

    def _next_prompt(self) -> Hashable | None:
        busy = {self._holds[group] for group in self._groups(empty=False)}
        for prompt in self._waiting:
            if prompt not in busy:
                return prompt
        return max(self._waiting, key=lambda prompt: len(self._waiting[prompt]), default=None)

    def _start(self, group: int, prompt: Hashable, *, fill: bool) -> Placement[Row]:
        self._holds[group] = prompt
        rows = self._waiting[prompt]
        started = []
        for slot, row in enumerate(self._slots[group]):
            if row is None and rows:
                self._slots[group][slot] = rows.popleft()
                started.append((slot, self._slots[group][slot]))
        if not rows:
            del self._waiting[prompt]
        return Placement(group, prompt, fill, tuple(started))  # type: ignore[arg-type]
