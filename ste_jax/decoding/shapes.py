"""Which compiled shape does a row run in?

A shape says how many tokens a prompt and what follows it may have, how many prompts are decoded at
once, and how many rows (samples) of each; its caches and programs have these sizes and no other. A
row's shape depends on the row alone, never on what else is waiting, and so do the shapes of all
that is computed for it. A program leaves out the blocks of new tokens that no row has reached; for
any row these would add exact zeros.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from ste_jax.config import from_plain
from ste_jax.config.schema import DecodingKnobs
from ste_jax.system.errors import RequestError


class Shape(NamedTuple):
    """What one set of compiled programs takes."""

    prompt: int
    """Tokens of a prompt, at the most."""
    new: int
    """New tokens of a row, at the most."""
    groups: int
    """Prompts that are decoded at once."""
    rows: int
    """Rows of each."""


class DoesNotFit(ValueError):
    """A row fits no shape; the text says why."""


class TooLong(DoesNotFit):
    """A prompt or completion is longer than every shape, or than the model's context."""


def check_shapes(knobs: DecodingKnobs) -> None:
    """Raises `RequestError` where the knobs cannot be run, or leave buckets open."""
    from_plain.check(knobs, "decoding")
    for name in ("prompt_buckets", "new_buckets"):
        if not getattr(knobs, name):
            raise RequestError(f"decoding.{name} must list at least one size")


def choose_shape(
    knobs: DecodingKnobs, prompt_tokens: int, new_tokens: int, *, alone: bool = False
) -> Shape:
    """The smallest buckets that hold a prompt of so many tokens and so many new ones; `alone`: the
    row is the only one of its prompt.

    Raises `DoesNotFit` where there are none, `TooLong` where the prompt is too long for them.
    """
    if prompt_tokens < 1:
        raise DoesNotFit("the prompt is empty")
    if new_tokens < 1:
        raise DoesNotFit(f"{new_tokens} new tokens were asked for, at least 1 is needed")
    return Shape(
        _bucket(knobs.prompt_buckets, prompt_tokens, "the prompt has", "prompt_buckets"),
        _bucket(knobs.new_buckets, new_tokens, "max_new_tokens is", "new_buckets"),
        groups=(knobs.singles or knobs.groups) if alone else knobs.groups,
        rows=1 if alone else knobs.group_size,
    )


def _bucket(buckets: Sequence[int], size: int, what: str, knob: str) -> int:
    index = bisect.bisect_left(buckets, size)
    if index == len(buckets):
        of_prompt = knob == "prompt_buckets"
        option = "--max-prompt-tokens" if of_prompt else "--max-new-tokens"
        kind = TooLong if of_prompt else DoesNotFit
        raise kind(
            f"{what} {size} tokens, the largest of decoding.{knob} is {buckets[-1]}: "
            f"enlarge it (on the command line {option}) or shorten the request"
        )
    return buckets[index]
