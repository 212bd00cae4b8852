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

from ste_jax.config import DecodingKnobs
from ste_jax.errors import RequestError


class Lane(NamedTuple):
    """Sizes in tokens, and how many prompts and rows of each run at once."""

    prompt: int
    new: int
    groups: int
    rows: int


class NoLane(ValueError):
    """A row fits no lane; the text says why."""


def check_knobs(knobs: DecodingKnobs) -> None:
    """Raises `RequestError` where the shapes cannot be run."""
    for name in ("prompt_buckets", "new_buckets"):
        buckets = getattr(knobs, name)
        if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
            raise RequestError(f"decoding.{name}={list(buckets)}: rising positive sizes are needed")
    for name in ("groups", "group_size", "prefill_chunk", "steps_per_round"):
        if getattr(knobs, name) < 1:
            raise RequestError(f"decoding.{name}={getattr(knobs, name)}: at least 1 is needed")
    if knobs.singles < 0:
        raise RequestError(f"decoding.singles={knobs.singles}: at least 0 is needed")
    for bucket in knobs.prompt_buckets:
        if bucket % knobs.prefill_chunk:
            raise RequestError(
                f"decoding.prompt_buckets: {bucket} is not a multiple of decoding.prefill_chunk "
                f"{knobs.prefill_chunk}"
            )


def choose_lane(
    knobs: DecodingKnobs, prompt_tokens: int, new_tokens: int, *, alone: bool = False
) -> Lane:
    """The smallest buckets that hold a prompt of so many tokens and so many new ones; `alone`: the
    row is the only one of its prompt.

    Raises `NoLane` where there are none.
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
        option = "--max-prompt-tokens" if knob == "prompt_buckets" else "--max-new-tokens"
        raise NoLane(
            f"{what} {size} tokens, the largest of decoding.{knob} is {buckets[-1]}: "
            f"enlarge it (on the command line {option}) or shorten the request"
        )
    return buckets[index]
