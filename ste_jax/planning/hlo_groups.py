"""Which devices exchange data in a collective?

XLA writes the groups of a collective in four forms; here each form becomes the numbers of devices.
"""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
from numpy.typing import NDArray

from ste_jax.planning.hlo import Instruction

_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
"""Matches the form that takes all devices in order as an array, and permutes its axes."""


def first_group(one: Instruction) -> tuple[int, ...]:
    """The devices of the first group of a collective; () if its one group has all devices."""
    pairs = one.attribute("source_target_pairs")
    if pairs or one.opcode.startswith("collective-permute"):
        return tuple(int(number) for number in re.findall(r"\d+", pairs)[:2])
    text = one.attributes.partition("replica_groups=")[2]
    if text.startswith("{"):
        return tuple(int(number) for number in re.findall(r"\d+", text[: text.index("}")]))
    return tuple(int(device) for device in _compact_groups(text)[0])


def _compact_groups(text: str) -> NDArray[np.int_]:
    """Groups [groups, members] of the two short forms, `[2,4]<=[4,2]T(1,0)` and `mesh['x'=2,'y'=4]
    {'y'}`, in which `device_ids=(0,2,1,3)` or `device_ids=([2,2]T(1,0))` may say which is where."""
    iota = re.match(rf"\[([\d,]+)\]<={_IOTA}", text)
    if iota:
        return _iota(iota[2], iota[3]).reshape(_numbers(iota[1]))
    ids = rf"(?:, device_ids=\((?:{_IOTA}|([\d,]+))\))?"
    mesh = re.match(rf"mesh\[(.*?)\]{ids} *\{{(.*?)\}}", text)
    if mesh is None:
        raise ValueError(f"which devices are these? {text[:100]}")
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    parts: dict[str, list[int]] = {name: [size] for name, size in sizes.items()}
    within: list[tuple[str, int]] = []
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh[5]):
        if before:
            rest = sizes[name] // (int(before) * int(size))
            parts[name] = [int(before), int(size), rest]
        within.append((name, 1 if before else 0))
    axes = [(name, place) for name, split in parts.items() for place in range(len(split))]
    shape = list(itertools.chain.from_iterable(parts.values()))
    order = [number for number, axis in enumerate(axes) if axis not in within]
    order += [axes.index(axis) for axis in within]
    members = math.prod(parts[name][place] for name, place in within)
    devices = np.arange(math.prod(shape))
    if mesh[2]:
        devices = _iota(mesh[2], mesh[3])
    elif mesh[4]:
        devices = np.array(_numbers(mesh[4]))
    return devices.reshape(shape).transpose(order).reshape(-1, members)


def _iota(shape: str, order: str | None) -> NDArray[np.int_]:
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
