"""Which instructions does a compiled program run, on which arrays?

This is a parser of XLA's text form of a compiled module (`compiled.as_text()`): its computations,
their instructions in the order in which they run, and the arrays that these take and give, with
each array's size and the memory that it is in.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
"""Bits of an element, for the types whose name does not end in that number."""

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_COMMENT = re.compile(r"/\*.*?\*/")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Array:
    """An array's type, shape and place in memory."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""
    """As XLA writes it: the dimensions' order from the fastest, then tiles T and memory space S."""

    @functools.cached_property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.dims)

    @functools.cached_property
    def space(self) -> int:
        """The number of its memory: 0 is the device's main memory, on TPU 1 is VMEM."""
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found[1]) if found else 0

    @functools.cached_property
    def bytes(self) -> int:
        """Its size in memory, padding to whole tiles included."""
        order, _, tiles = self.layout.partition(":")
        dims = list(self.dims)
        if order:
            dims = [self.dims[int(axis)] for axis in reversed(order.split(","))]
        tile = re.search(r"T\(([\d,]+)\)", tiles)
        if tile:
            sizes = [int(size) for size in tile[1].split(",")]
            dims = [1] * (len(sizes) - len(dims)) + dims
            for axis, size in enumerate(sizes, len(dims) - len(sizes)):
                dims[axis] = -(-dims[axis] // size) * size
        return math.prod(dims) * _bits(self.dtype) // 8


@dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    """The arrays of its result, those of a tuple in their order."""
    operands: tuple[str, ...]
    """Names; for a constant or a parameter, the text in the brackets."""
    attributes: str

    def attribute(self, name: str) -> str:
        """The text of an attribute: a word, or what its braces or quotes hold; "" if absent."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|\"[^\"]*\"|[^\s,]+)", self.attributes)
        return found[1].strip('{}"') if found else ""

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations that these attributes name."""
        return [
            name.strip().removeprefix("%")
            for attribute in attributes
            for name in self.attribute(attribute).split(",")
            if name
        ]

    @property
    def known_trips(self) -> int | None:
        """How often a loop's body runs, if the compiler wrote it down."""
        found = _TRIPS.search(self.attributes)
        return int(found[1]) if found else None


@dataclass
class Computation:
    """Instructions in the order in which they run."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by their number."""
        return {
            int(one.operands[0]): one
            for one in self.instructions.values()
            if one.opcode == "parameter"
        }

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that take each value."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for one in self.instructions.values():
            for operand in dict.fromkeys(one.operands):
                if operand in found:
                    found[operand].append(one)
        return found

    def arrays(self, name: str) -> tuple[Array, ...]:
        """The arrays that the instruction `name` gives."""
        return self.instructions[name].outputs


@dataclass
class Module:
    """A program: its computations by name."""

    computations: dict[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """The module of XLA's text. Raises `ValueError` for a line that it cannot read."""
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in _whole_lines(text):
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = computations[header[2]] = Computation(header[2])
                entry = current if header[1] else entry
        elif _END.match(line):
            if not current.root:
                raise ValueError(f"{current.name}: no instruction of it is its result")
            current = None
        elif found := _INSTRUCTION.match(line):
            current.instructions[found[2]] = _instruction(found[2], _COMMENT.sub("", found[3]))
            if found[1]:
                current.root = found[2]
    if entry is None:
        raise ValueError("no entry computation: this is not the text of a compiled module")
    return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """The text's lines. A kernel's description has lines of its own, which are joined to the line
    of the kernel's instruction."""
    held = ""
    for line in text.splitlines():
        goes_on = _INSTRUCTION.match(held) and not (_INSTRUCTION.match(line) or _END.match(line))
        if goes_on:
            held += line
        else:
            yield held
            held = line
    yield held


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    return Instruction(
        name=name,
        opcode=text[end:opening].strip(),
        outputs=tuple(arrays_of(text[:end])),
        # Some versions write an operand's type before its name.
        operands=tuple(
            one.split(" ")[-1].removeprefix("%") for one in _split(text[opening + 1 : closing])
        ),
        attributes=text[closing + 1 :],
    )


def arrays_of(text: str) -> Iterator[Array]:
    """The arrays that a type's text names."""
    for dtype, dims, layout in _ARRAY.findall(text):
        sizes = (int(size.removeprefix("<=")) for size in dims.split(",") if size)
        yield Array(dtype, tuple(sizes), layout)


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    if found is None:
        raise ValueError(f"how large is an element of type {dtype}?")
    return int(found[1])


def _closing(text: str, opening: int) -> int:
    """The place where the bracket that opens at `opening` closes."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"a bracket is not closed: {text[:200]}")


def _split(text: str) -> list[str]:
    """The parts between the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [part for part in (*parts, text[start:].strip()) if part]
