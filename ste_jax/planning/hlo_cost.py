"""What does one run of a compiled program cost?

XLA's own analysis counts the body of a loop once. Here a module's instructions are counted as often
as they run: those of a loop by the trips that its text gives, or, where only the data decide, by
what the caller says. Each instruction is charged

- bytes: each of the arrays in main memory that it takes and gives, once, with the padding of their
  layout. An operand that is only sliced is charged for the slices, a result that is updated in
  place for the update; arrays in another memory (on TPU, VMEM) are free, but moving them is not.
- FLOPs: 2 for each product of a matrix multiplication or convolution, 1 for every other result of
  floating-point arithmetic.
- bytes sent over the interconnect by each device, as a ring does it.

A custom kernel is opaque: it is charged what it declares (`pl.CostEstimate`), or, if it declares
nothing, its operands and results and no FLOPs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ste_jax.planning.hlo import Array, Computation, Instruction, Module
from ste_jax.planning.hlo_groups import first_group
from ste_jax.planning.hlo_trips import Loops, trips_of

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "domain",
}  # fmt: skip
"""Operations that move no bytes themselves."""

_SLICES = {"dynamic-slice", "slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""Operations that change their first operand, and which operand holds the new values."""

_ARITHMETIC = {
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "exponential", "log", "tanh",
    "rsqrt", "sqrt", "power", "negate", "logistic", "exponential-minus-one", "log-plus-one", "abs",
    "cosine", "sine", "erf",
}  # fmt: skip

_SENT: dict[str, Callable[[int, int, int], float]] = {
    "all-reduce": lambda taken, given, n: 2 * taken * (n - 1) / n,
    "reduce-scatter": lambda taken, given, n: taken * (n - 1) / n,
    "all-gather": lambda taken, given, n: given * (n - 1) / n,
    "all-to-all": lambda taken, given, n: taken * (n - 1) / n,
    "ragged-all-to-all": lambda taken, given, n: taken * (n - 1) / n,
    "collective-permute": lambda taken, given, n: taken,
}
"""Collective -> the bytes that a device sends, from the bytes that it takes, the bytes that it
gives and the size n of its group."""


@dataclass
class Cost:
    """The cost of a program, or of a part of it, on one device."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    sent: dict[tuple[int, ...], float] = field(default_factory=dict)
    """Bytes sent in collectives, by the members of their first group: `Line.devices`."""


@dataclass(frozen=True)
class Line:
    """An instruction, how often it runs, and what a run of it costs."""

    instruction: Instruction
    times: float
    flops: float
    hbm_bytes: float
    sent: float = 0.0
    """Bytes that a device sends in a run of it."""
    devices: tuple[int, ...] = ()
    """The members of the first group of devices that exchange these bytes."""


class UnknownTripsError(ValueError):
    """The caller's numbers of trips are not one for each loop whose number is not in the
    program."""


def lines(module: Module, unknown_trips: Sequence[float] = ()) -> Iterator[Line]:
    """Every instruction that runs, outside of fusions, with what it costs.

    Args:
      module: a scheduled module, after all of the compiler's passes.
      unknown_trips: the number of trips of each loop whose text does not give it, in the order in
        which the loops begin to run, so that a loop precedes those inside it.

    Of a conditional, the branch that moves the most bytes is counted. Raises `UnknownTripsError`
    where `unknown_trips` is too short or too long.
    """
    walk = _Walk(module, list(unknown_trips))
    yield from walk.computation(module.entry, 1.0, ())
    if walk.unknown_trips:
        raise UnknownTripsError(
            f"trips of {len(unknown_trips)} loops are said, but of the last "
            f"{len(walk.unknown_trips)} the program has none whose number it does not give"
        )


def total(counted: Iterator[Line]) -> Cost:
    """The sum of the costs of all lines."""
    cost = Cost()
    for line in counted:
        cost.flops += line.times * line.flops
        cost.hbm_bytes += line.times * line.hbm_bytes
        if line.sent:
            sent = cost.sent.get(line.devices, 0.0)
            cost.sent[line.devices] = sent + line.times * line.sent
    return cost


@dataclass(frozen=True)
class _Walk:
    module: Module
    unknown_trips: list[float]
    """The numbers of trips of the loops that are still to come."""

    def computation(self, computation: Computation, times: float, loops: Loops) -> Iterator[Line]:
        for one in computation.instructions.values():
            if one.opcode == "while":
                trips = self._trips(one, computation, loops)
                for name in one.called("condition", "body"):
                    inner = self.module.computations[name]
                    yield from self.computation(inner, times * trips, (*loops, (one, computation)))
            elif one.opcode == "conditional":
                yield from max(
                    (
                        list(self.computation(self.module.computations[name], times, ()))
                        for name in one.called(
                            "branch_computations", "true_computation", "false_computation"
                        )
                    ),
                    key=lambda counted: total(iter(counted)).hbm_bytes,
                )
            elif one.opcode in {"call", "async-start"}:
                for name in one.called("to_apply", "calls"):
                    inner = self.module.computations[name]
                    yield from self.computation(inner, times, ())
            elif one.opcode not in _FREE and not one.opcode.endswith(("-done", "-update")):
                yield self._line(one, computation, times)

    def _line(self, one: Instruction, computation: Computation, times: float) -> Line:
        declared = _declared(one)
        if declared is not None:
            return Line(one, times, *declared)
        flops, moved = self.flops(one, computation), self.moved(one, computation)
        sent = _SENT.get(one.opcode.removesuffix("-start"))
        if sent is None:
            return Line(one, times, flops, moved)
        group = first_group(one)
        taken, given = (
            sum(array.bytes for array in arrays)
            for arrays in (_taken(one, computation), _given(one))
        )
        return Line(one, times, flops, moved, sent(taken, given, len(group)), group)

    def _trips(self, loop: Instruction, around: Computation, loops: Loops) -> float:
        """How often the body of a loop runs."""
        trips = trips_of(self.module, loop, around, loops)
        if trips is not None:
            return trips
        if not self.unknown_trips:
            raise UnknownTripsError(
                f"how often does the loop {loop.name} run? It stands in {len(loops)} others, and "
                f"neither the program nor the caller says it ({loop.attribute('metadata')})"
            )
        return self.unknown_trips.pop(0)

    # -- bytes --------------------------------------------------------------------------------

    def moved(self, one: Instruction, where: Computation) -> float:
        """Bytes that an instruction reads from and writes to main memory."""
        if one.opcode == "custom-call" and not one.operands:
            return 0  # a buffer without contents
        given = _given(one)
        if one.opcode == "fusion":
            inner = self._inner(one)
            read = sum(
                self._read(inner, inner.parameters[number].name, array.bytes)
                for number, operand in enumerate(one.operands)
                for array in where.arrays(operand)
                if array.space == 0
            )
            written = sum(
                self._written(inner, inner.root, number, array)
                for number, array in enumerate(given)
                if array.space == 0
            )
            return read + written
        taken = _taken(one, where)
        if one.opcode in _UPDATES:
            new = taken[_UPDATES[one.opcode]]
            return sum(
                array.bytes
                for array in (*taken[1:], Array(new.dtype, new.dims, given[0].layout))
                if array.space == 0
            )
        if one.opcode.removesuffix("-start") in _SLICES:
            source, *indices = taken
            read_from = [Array(array.dtype, array.dims, source.layout) for array in given]
            taken = (*read_from, *indices)
        return sum(array.bytes for array in (*taken, *given) if array.space == 0)

    def _inner(self, fusion: Instruction) -> Computation:
        return self.module.computations[fusion.called("calls")[0]]

    def _read(self, inner: Computation, name: str, whole: int) -> int:
        """Bytes of a value of `whole` bytes that a fused computation reads."""
        read = 0
        for user in inner.users[name]:
            first = user.operands[0] == name and name not in user.operands[1:]
            if user.opcode in _SLICES and first:
                read += sum(array.bytes for array in user.outputs)
            elif user.opcode in _UPDATES and first:
                pass
            elif user.opcode == "bitcast":
                read += self._read(inner, user.name, whole)
            elif user.opcode == "fusion":
                within = self._inner(user)
                for number, operand in enumerate(user.operands):
                    if operand == name:
                        read += self._read(within, within.parameters[number].name, whole)
            else:
                return whole
        if name == inner.root:
            return whole
        return min(read, whole)

    def _written(self, inner: Computation, name: str, number: int, whole: Array) -> int:
        """Bytes that are written of a fused computation's result `number`."""
        one = inner.instructions[name]
        if one.opcode == "tuple":
            return self._written(inner, one.operands[number], 0, whole)
        if one.opcode == "bitcast":
            return self._written(inner, one.operands[0], 0, whole)
        if one.opcode == "fusion":
            within = self._inner(one)
            return self._written(within, within.root, number, whole)
        if one.opcode == "get-tuple-element":
            element = int(one.attribute("index"))
            return self._written(inner, one.operands[0], element, whole)
        if one.opcode in _UPDATES:
            (new,) = inner.arrays(one.operands[_UPDATES[one.opcode]])
            return new.bytes
        return whole.bytes

    # -- FLOPs --------------------------------------------------------------------------------

    def flops(self, one: Instruction, where: Computation) -> float:
        """Floating-point operations of an instruction, those of a fusion included."""
        if one.opcode == "fusion":
            inner = self._inner(one)
            return sum(self.flops(each, inner) for each in inner.instructions.values())
        if one.opcode == "dot":
            left = where.arrays(one.operands[0])[0].dims
            summed = [left[int(axis)] for axis in one.called("lhs_contracting_dims")]
            return 2 * one.outputs[0].elements * math.prod(summed)
        if one.opcode == "convolution":
            return 2 * _convolution_products(one, where)
        if not one.outputs or one.outputs[0].dtype[0] not in "bf":
            return 0
        if one.opcode in _ARITHMETIC:
            return one.outputs[0].elements
        if one.opcode == "reduce":
            return where.arrays(one.operands[0])[0].elements
        return 0


def _given(one: Instruction) -> tuple[Array, ...]:
    """The arrays that an instruction gives; for a `-start`, those that its `-done` will give."""
    if one.opcode == "copy-start":
        return one.outputs[:1]
    if one.opcode in {"slice-start", "all-gather-start", "collective-permute-start"}:
        # Its operands come first in its tuple.
        return one.outputs[len(one.operands) : 2 * len(one.operands)]
    return one.outputs


def _taken(one: Instruction, where: Computation) -> tuple[Array, ...]:
    return tuple(array for operand in one.operands for array in where.arrays(operand))


def _declared(one: Instruction) -> tuple[float, float] | None:
    """The FLOPs and bytes that a kernel declares; None if it declares nothing."""
    if one.opcode != "custom-call":
        return None
    found = re.search(r'"cost_estimate":(\{[^}]*\})', one.attributes)
    if found is None:
        return None
    declared = json.loads(found[1])
    return float(declared.get("flops", 0)), float(declared.get("bytes_accessed", 0))


def _convolution_products(one: Instruction, where: Computation) -> int:
    """The number of products in a convolution, without those with padding or holes: on TPU every
    matrix product is a convolution, and most of a window over its batch falls into holes."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    if labels is None:
        raise ValueError(f"{one.name}: a convolution without dim_labels")
    source, kernel = (where.arrays(operand)[0].dims for operand in one.operands[:2])
    window = _window(one)
    products = (
        math.prod(
            size
            for label, size in zip(labels[3], one.outputs[0].dims, strict=True)
            if label in "bf"
        )
        * kernel[labels[2].index("i")]
    )
    for place in range(len(window["size"])):
        label = str(place)
        products *= _taps(
            source[labels[1].index(label)],
            one.outputs[0].dims[labels[3].index(label)],
            {name: values[place] for name, values in window.items()},
        )
    return products // (int(one.attribute("batch_group_count") or 1))


def _window(one: Instruction) -> dict[str, list[int]]:
    """The window's numbers for each spatial dimension."""
    given = dict(re.findall(r"(\w+)=([\w\-]+)", one.attribute("window")))
    size = [int(number) for number in given["size"].split("x")] if given else []
    found = {"size": size}
    for name in ("stride", "lhs_dilate", "rhs_dilate"):
        text = given.get(name)
        found[name] = [int(number) for number in text.split("x")] if text else [1] * len(size)
    text = given.get("pad")
    pads = text.split("x") if text else ["0_0"] * len(size)
    found["low"] = [int(pad.split("_")[0]) for pad in pads]
    return found


def _taps(length: int, outputs: int, window: dict[str, int]) -> int:
    """How many pairs of an output and a place of the window meet a number of the input."""
    output = np.arange(outputs)[:, None] * window["stride"]
    place = output + np.arange(window["size"]) * window["rhs_dilate"] - window["low"]
    there = (place >= 0) & (place <= (length - 1) * window["lhs_dilate"])
    return int(np.sum(there & (place % window["lhs_dilate"] == 0)))
