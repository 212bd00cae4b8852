"""How are given completions laid into batches of fixed shapes?

All completions of a prompt share its prefix. A completion's width is the smallest of a few that
holds it, and every batch has the same number of rows, so a row's shapes depend on the row alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ste_jax.config.schema import DecodingKnobs
from ste_jax.decoding.shapes import TooLong, choose_shape

ROWS = 16
"""Rows of a scoring batch."""
WIDER = 4
"""Batches are 1, 4, 16 .. tokens wide: labels are mostly of one token."""


@dataclass(frozen=True)
class Batch:
    """`ROWS` completions of one prompt; rows and places that none fills hold zeros."""

    indices: tuple[int, ...]
    """Which completions the first rows are."""
    tokens: np.ndarray[Any, Any]
    """[R,T]: what is fed, the prompt's last token and the completion but its last."""
    targets: np.ndarray[Any, Any]
    """[R,T]: the completion."""


def width(length: int, largest: int) -> int:
    """The width of a batch for a completion of `length` tokens."""
    size = 1
    while size < length:
        size *= WIDER
    return max(min(size, largest), length)


def batches(last: int, completions: Sequence[Sequence[int]], largest: int) -> Iterator[Batch]:
    """Lays `completions` (tokens) after a prompt that ends with token `last` into batches."""
    by_width = defaultdict(list)
    for index, completion in enumerate(completions):
        if completion:
            by_width[width(len(completion), largest)].append(index)
    for size, indices in sorted(by_width.items()):
        for start in range(0, len(indices), ROWS):
            chosen = indices[start : start + ROWS]
            tokens = np.zeros((ROWS, size), np.int32)
            targets = np.zeros((ROWS, size), np.int32)
            for row, index in enumerate(chosen):
                completion = completions[index]
                tokens[row, : len(completion)] = [last, *completion[:-1]]
                targets[row, : len(completion)] = completion
            yield Batch(tuple(chosen), tokens, targets)


def check_score(
    knobs: DecodingKnobs,
    max_position: int,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
) -> None:
    """Raises `DoesNotFit` where a completion fits no shape, `TooLong` where the prompt does not."""
    longest = max(map(len, completions), default=0)
    choose_shape(knobs, len(prompt), max(longest, 1))
    if len(prompt) + longest > max_position:
        raise TooLong(
            f"{len(prompt)} prompt tokens and {longest} of a completion are more than the model's "
            f"{max_position} positions"
        )
