"""Which compiled shape does a row run in?

A lane is a pair of sizes, for the prompt and for the new tokens; its caches and programs have these
sizes and no other. A row's lane depends on the row alone, never on what else is waiting: so do its
shapes, and with them every bit of its result.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from ste_jax.config import DecodingKnobs
from ste_jax.errors import RequestError


class Lane(NamedTuple):
    """Sizes in tokens."""

    prompt: int
    new: int


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
    for bucket in knobs.prompt_buckets:
        if bucket % knobs.prefill_chunk:
            raise RequestError(
                f"decoding.prompt_buckets: {bucket} is not a multiple of decoding.prefill_chunk "
                f"{knobs.prefill_chunk}"
            )


def choose_lane(knobs: DecodingKnobs, prompt_tokens: int, new_tokens: int) -> Lane:
    """The smallest buckets that hold a prompt of so many tokens and so many new ones.

    Raises `NoLane` where there are none.
    """
    if prompt_tokens < 1:
        raise NoLane("the prompt is empty")
    if new_tokens < 1:
        raise NoLane(f"{new_tokens} new tokens were asked for, at least 1 is needed")
    return Lane(
        _bucket(knobs.prompt_buckets, prompt_tokens, "the prompt has", "prompt_buckets"),
        _bucket(knobs.new_buckets, new_tokens, "max_new_tokens is", "new_buckets"),
    )


def _bucket(buckets: Sequence[int], size: int, what: str, knob: str) -> int:
    index = bisect.bisect_left(buckets, size)
    if index == len(buckets):
        raise NoLane(
            f"{what} {size} tokens, the largest of decoding.{knob} is {buckets[-1]}: "
            "enlarge it or shorten the request"
        )
    return buckets[index]
