"""How often does a loop of a compiled program run?"""

from __future__ import annotations

import re

from ste_jax.planning.hlo import Computation, Instruction, Module

_SAME = {"copy", "bitcast", "reshape", "convert", "copy-start", "copy-done"}
"""Operations whose result is the same number as their operand."""


Loops = tuple[tuple[Instruction, Computation], ...]
"""The loops around a computation, outermost first, each with the computation that it is part of."""


def trips_of(module: Module, loop: Instruction, around: Computation, loops: Loops) -> int | None:
    """How often the body of a loop runs; None if the program does not say so, either in the loop's
    own text or by counting from one constant to another.

    Args:
      around: the computation that the loop is part of.
      loops: the loops around that computation.
    """
    if loop.known_trips is not None:
        return loop.known_trips
    condition, body = (module.computations[n] for n in loop.called("condition", "body"))
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or len(test.operands) != 2:
        return None
    index = _element(condition, test.operands[0])
    if index is None:
        return None
    inside = (*loops, (loop, around))
    bound = _number(module, condition, test.operands[1], inside)
    start = _number(module, around, _initial(loop, around, index), loops)
    kept = body.instructions[body.root]
    if kept.opcode != "tuple":
        return None
    after = body.instructions[_origin(body, kept.operands[index])]
    if after.opcode != "add" or bound is None or start is None:
        return None
    for counter, by in (after.operands, after.operands[::-1]):
        step = _number(module, body, by, inside)
        if step and _element(body, counter) == index:
            last = {"LT": bound, "LE": bound + 1, "NE": bound, "GT": bound, "GE": bound - 1}
            direction = test.attribute("direction")
            return len(range(start, last[direction], step)) if direction in last else None
    return None


def _initial(loop: Instruction, around: Computation, index: int) -> str:
    """The name of the value with which an element of the loop's state starts."""
    state = around.instructions[_origin(around, loop.operands[0])]
    return state.operands[index] if state.opcode == "tuple" else ""


def _number(module: Module, where: Computation, name: str, loops: Loops) -> int | None:
    """The integer that a value always has, traced through the loops around it; None if unknown."""
    name = _origin(where, name)
    one = where.instructions.get(name)
    if one is None:
        return None
    if one.opcode == "constant":
        return int(one.operands[0]) if re.fullmatch(r"-?\d+", one.operands[0]) else None
    index = _element(where, name)
    if index is None or not loops:
        return None
    loop, around = loops[-1]
    body = module.computations[loop.called("body")[0]]
    kept = body.instructions[body.root]
    if kept.opcode != "tuple" or _element(body, kept.operands[index]) != index:
        return None
    return _number(module, around, _initial(loop, around, index), loops[:-1])


def _origin(where: Computation, name: str) -> str:
    """The value that `name` is a copy of; itself if it is none."""
    while name in where.instructions and where.instructions[name].opcode in _SAME:
        name = where.instructions[name].operands[0]
    return name


def _element(where: Computation, name: str) -> int | None:
    """The number of the element of a computation's only parameter that a value is; None if none."""
    one = where.instructions.get(_origin(where, name))
    if one is None or one.opcode != "get-tuple-element":
        return None
    source = where.instructions[one.operands[0]]
    return int(one.attribute("index")) if source.opcode == "parameter" else None
