"""How do the dimensions of a tensor in a file correspond to those of our parameter?

A layout such as `(q_heads head_dim) embed` names the file's dimensions in our logical axes; axes in
parentheses are merged into one dimension, the first the slowest. Both directions derive from it,
and so does which slice of the file a slice of the parameter needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Index = tuple[slice, ...]
"""One slice with plain start and stop per dimension."""


def parse(layout: str) -> list[tuple[str, ...]]:
    """The axes of each of the file's dimensions."""
    return [
        tuple((group or single).split())
        for group, single in re.findall(r"\(([^)]*)\)|(\w+)", layout)
    ]


def file_shape(layout: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of the tensor in the file; `sizes` gives the length of every axis."""
    return tuple(math.prod(sizes[axis] for axis in group) for group in parse(layout))


def read_slice(
    read: Callable[[Index], Array],
    layout: str,
    axes: Sequence[str],
    sizes: Mapping[str, int],
    index: Index,
) -> Array:
    """The part `index` of our parameter with these `axes`, from `read(file_index)`.

    In a merged dimension the range of its first axis is read, and the rest is cut in memory.
    """
    wanted = dict(zip(axes, index, strict=True))
    groups = parse(layout)
    file_index = []
    for first, *rest in groups:
        step = math.prod(sizes[axis] for axis in rest)
        file_index.append(slice(wanted[first].start * step, wanted[first].stop * step))
    out = read(tuple(file_index))

    split: list[int] = []
    cut: list[slice] = []
    for first, *rest in groups:
        split += [wanted[first].stop - wanted[first].start, *(sizes[axis] for axis in rest)]
        cut += [slice(None), *(wanted[axis] for axis in rest)]
    out = out.reshape(split)[tuple(cut)]
    flat = [axis for group in groups for axis in group]
    return out.transpose([flat.index(axis) for axis in axes])


def to_file(array: Array, axes: Sequence[str], layout: str) -> Array:
    """The whole tensor as the file has it, of our whole parameter (without its `layers` axis)."""
    groups = parse(layout)
    flat = [axis for group in groups for axis in group]
    sizes = dict(zip(axes, array.shape, strict=True))
    moved = array.transpose([list(axes).index(axis) for axis in flat])
    return np.ascontiguousarray(moved.reshape(file_shape(layout, sizes)))
