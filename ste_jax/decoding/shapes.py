"""Which compiled shape does a row run in?

A lane is sizes, for the prompt and for the new tokens, and numbers, of prompts and of rows for
each; its caches and programs have these and no other. A row's lane depends on the row alone, never
on what else is waiting, and so do the shapes of all that is computed for it. Of what rows write,
a program leaves out blocks that none has come to; for any row these would add exact zeros.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from ste_jax.config.schema import DecodingKnobs


class Lane(NamedTuple):
    """Sizes in tokens, and how many prompts and rows of each run at once."""

    prompt: int
    new: int
    groups: int
    rows: int


class NoLane(ValueError):
    """A row fits no lane; the text says why."""


class TooLong(NoLane):
    """It is longer than the lanes, or than the model's context."""


def choose_lane(
    knobs: DecodingKnobs, prompt_tokens: int, new_tokens: int, *, alone: bool = False
) -> Lane:
    """The smallest buckets that hold a prompt of so many tokens and so many new ones; `alone`: the
    row is the only one of its prompt.

    Raises `NoLane` where there are none, `TooLong` where the prompt is too long for them.
    """
    if prompt_tokens < 1:
        raise NoLane("the prompt is empty")
    if new_tokens < 1:
        raise NoLane(f"{new_tokens} new tokens were asked for, at least 1 is needed")
    return Lane(
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
        kind = TooLong if of_prompt else NoLane
        raise kind(
            f"{what} {size} tokens, the largest of decoding.{knob} is {buckets[-1]}: "
            f"enlarge it (on the command line {option}) or shorten the request"
        )
    return buckets[index]
