"""Which training examples share a row, and which rows make each optimizer step?

Shapes: `R` rows, `T` the row's length, `C` targets kept per row.

Everything here is numpy and known before the first step: a `Plan` is a function of the examples,
the knobs and the seed alone, not of the order in which the examples came.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.system import hashing
from ste_jax.system.errors import RequestError

Array = np.ndarray[Any, Any]

_TARGET_MULTIPLE = 64
"""The number of targets per row is rounded up to a multiple of this, so that similar data share
compiled programs."""


class Unit(Protocol):
    """A piece of training data that is not divided: it is wholly in one row of a batch."""

    @property
    def id(self) -> str: ...

    @property
    def parts(self) -> tuple[Example, ...]:
        """The segments of a row that the unit fills, one after another."""

    @property
    def length(self) -> int:
        """The number of tokens of all its parts."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt and the completion to be learnt, as token ids. A `Unit` of itself."""

    id: str
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    """The end-of-turn token is the last of them where it was sampled."""
    weights: Sequence[float] | None = None
    """Weight of the loss at each completion token; None: 1 everywhere. A token of weight 0 is not
    learnt; one below 0 is made less likely."""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(f"example {self.id}: nothing stands before its completion")
        if self.weights is not None and len(self.weights) != len(self.completion_ids):
            raise ValueError(
                f"example {self.id}: {len(self.weights)} weights for "
                f"{len(self.completion_ids)} completion tokens"
            )

    @property
    def parts(self) -> tuple[Example, ...]:
        """Itself alone."""
        return (self,)

    @property
    def length(self) -> int:
        """The number of tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)

    def cut(self, length: int) -> Example:
        """An example of its first `length` tokens; the same example if no token of the completion
        would be left."""
        kept = length - len(self.prompt_ids)
        if kept < 1 or kept >= len(self.completion_ids):
            return self
        weights = None if self.weights is None else self.weights[:kept]
        return dataclasses.replace(self, completion_ids=self.completion_ids[:kept], weights=weights)

    def target_weights(self) -> Array:
        """Weight of the loss at each completion token."""
        if self.weights is None:
            return np.ones(len(self.completion_ids), np.float32)
        return np.asarray(self.weights, np.float32)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Packed rows; every field's first axis is `R`.

    Target `j` of a row is learnt from the hidden state at `target_at[j]`, whose next token it is.
    A place of the `C` that is not used has weight 0.
    """

    tokens: Array
    """[R,T] int32, 0 in padding."""
    segment_ids: Array
    """[R,T] int32: the examples of a row from 1, padding 0."""
    positions: Array
    """[R,T] int32, from 0 in each segment."""
    target_at: Array
    """[R,C] int32."""
    targets: Array
    """[R,C] int32."""
    weights: Array
    """[R,C] float32."""
    extra: Mapping[str, Array] = field(default_factory=dict)
    """Further fields that the objective needs, by name; [R,...]."""

    def fields(self) -> dict[str, Array]:
        """The arrays by name."""
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return own | dict(own.pop("extra"))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each optimizer step trains on."""

    steps: tuple[tuple[tuple[int, ...], ...], ...]
    """Per step, per row: indices into the units. A row short of `batch_rows` is left empty."""
    targets_per_row: int
    """`C`: enough for every row of the plan."""
    too_long: tuple[str, ...]
    """Ids of the units that no row can hold."""
    unweighted: tuple[str, ...]
    """Ids of the units of which a part has no token to learn."""

    @property
    def units_per_row(self) -> int:
        """The number of units in the fullest row."""
        return max((len(row) for step in self.steps for row in step), default=0)

    def ids(self, step: int, units: Sequence[Unit]) -> list[str]:
        """Ids of the units in a step's batch, in the order of its rows."""
        return [units[index].id for row in self.steps[step] for index in row]


AnyUnit = TypeVar("AnyUnit", bound=Unit)


def cut_to_fit(
    units: Sequence[AnyUnit], knobs: TrainingKnobs
) -> tuple[list[AnyUnit], tuple[str, ...]]:
    """The units, cut to fit a row if `finetune.too_long` says so, and the ids of those so cut.

    A unit that fits no row all the same (its prompt is too long, or it has several parts) is left
    as it is.
    """
    if knobs.too_long == "drop":
        return list(units), ()
    kept: list[Any] = []
    cut = []
    for unit in units:
        if isinstance(unit, Example) and unit.length > knobs.sequence_length:
            shorter = unit.cut(knobs.sequence_length)
            if shorter is not unit:
                cut.append(unit.id)
            kept.append(shorter)
        else:
            kept.append(unit)
    return kept, tuple(sorted(cut))


def pack(lengths: Sequence[int], sequence_length: int) -> list[list[int]]:
    """First fit: each length goes, in order, to the first row with room for it -> indices per row.

    Every length must be at most `sequence_length`.
    """
    rows: list[list[int]] = []
    room = np.zeros(len(lengths), np.int64)
    for index, length in enumerate(lengths):
        opened = len(rows)
        row = int(np.argmax(room[:opened] >= length)) if opened else 0
        if not opened or room[row] < length:
            row = opened
            rows.append([])
            room[row] = sequence_length
        rows[row].append(index)
        room[row] -= length
    return rows


def plan(units: Sequence[Unit], knobs: TrainingKnobs, seed: int) -> Plan:
    """Plans all optimizer steps: epochs of differently packed rows, one after another.

    The last epoch may be a part of one; batches run over the borders of epochs, and only the last
    batch may have fewer rows than `batch_rows`.

    Raises:
      RequestError: `accumulate` does not divide `batch_rows`, or neither `epochs` nor `max_steps`
        allows a step.
    """
    if knobs.batch_rows < 1 or knobs.accumulate < 1 or knobs.batch_rows % knobs.accumulate:
        raise RequestError(
            f"{knobs.group}.accumulate={knobs.accumulate} does not divide "
            f"{knobs.group}.batch_rows={knobs.batch_rows}"
        )
    if knobs.epochs <= 0 or knobs.max_steps < 0:
        raise RequestError(
            f"{knobs.group}.epochs={knobs.epochs} and {knobs.group}.max_steps={knobs.max_steps} "
            "allow no step"
        )
    too_long = [unit.id for unit in units if unit.length > knobs.sequence_length]
    fitting = [i for i, unit in enumerate(units) if unit.length <= knobs.sequence_length]
    learnable = [i for i in fitting if all(map(_target_count, units[i].parts))]
    unweighted = [units[i].id for i in sorted(set(fitting) - set(learnable))]

    rows: list[tuple[int, ...]] = []
    most_rows = knobs.max_steps * knobs.batch_rows if knobs.max_steps else math.inf
    for epoch in range(math.ceil(knobs.epochs) if learnable else 0):
        if len(rows) >= most_rows:
            break
        ordered = sorted(learnable, key=lambda index: _order(units[index], seed, epoch))
        packed = pack([units[index].length for index in ordered], knobs.sequence_length)
        # A part of an epoch is rounded up to whole rows.
        part = min(1.0, knobs.epochs - epoch)
        for row in packed[: math.ceil(part * len(packed))]:
            rows.append(tuple(ordered[place] for place in row))
    if math.isfinite(most_rows):
        rows = rows[: int(most_rows)]

    steps = [
        tuple(rows[start : start + knobs.batch_rows])
        for start in range(0, len(rows), knobs.batch_rows)
    ]
    return Plan(
        steps=tuple(steps),
        targets_per_row=targets_per_row(rows, units),
        too_long=tuple(sorted(too_long)),
        unweighted=tuple(sorted(unweighted)),
    )


def targets_per_row(rows: Iterable[Sequence[int]], units: Sequence[Unit]) -> int:
    """How many places for targets are enough for every one of some rows."""
    counts = (sum(_target_count(part) for i in row for part in units[i].parts) for row in rows)
    return _TARGET_MULTIPLE * math.ceil(max(counts, default=1) / _TARGET_MULTIPLE)


def fill(
    rows: Sequence[Sequence[int]],
    units: Sequence[Unit],
    *,
    count: int,
    sequence_length: int,
    targets_per_row: int,
) -> Rows:
    """The arrays of some planned rows; `R` is `count`, the rows beyond those given are empty."""
    tokens = np.zeros((count, sequence_length), np.int32)
    segment_ids = np.zeros_like(tokens)
    positions = np.zeros_like(tokens)
    target_at = np.zeros((count, targets_per_row), np.int32)
    targets = np.zeros_like(target_at)
    weights = np.zeros((count, targets_per_row), np.float32)
    for row, members in enumerate(rows):
        start = learnt = 0
        parts = [part for index in members for part in units[index].parts]
        for segment, example in enumerate(parts, start=1):
            place = slice(start, start + example.length)
            tokens[row, place] = [*example.prompt_ids, *example.completion_ids]
            segment_ids[row, place] = segment
            positions[row, place] = np.arange(example.length)
            weight = example.target_weights()
            kept = np.flatnonzero(weight)
            into = slice(learnt, learnt + len(kept))
            target_at[row, into] = start + len(example.prompt_ids) - 1 + kept
            targets[row, into] = np.asarray(example.completion_ids, np.int32)[kept]
            weights[row, into] = weight[kept]
            start, learnt = place.stop, into.stop
    return Rows(
        tokens=tokens,
        segment_ids=segment_ids,
        positions=positions,
        target_at=target_at,
        targets=targets,
        weights=weights,
    )


def _target_count(example: Example) -> int:
    return int(np.count_nonzero(example.target_weights()))


def _order(unit: Unit, seed: int, epoch: int) -> tuple[bytes, str]:
    # By hash and not by a shuffle: the same on every machine, whatever order the examples came in.
    return hashing.digest(f"{seed}/{epoch}/{unit.id}"), unit.id
