"""Is a row's shape the smallest that holds it, and are impossible shapes refused?"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ste_jax.config.schema import DecodingKnobs
from ste_jax.decoding.shapes import DoesNotFit, Shape, check_shapes, choose_shape
from ste_jax.system.errors import RequestError

KNOBS = DecodingKnobs(
    prompt_buckets=(16, 32), new_buckets=(4, 8), prefill_chunk=8, groups=3, group_size=2
)


@pytest.mark.parametrize(
    ("prompt", "new", "shape"),
    [(1, 1, (16, 4)), (16, 4, (16, 4)), (17, 5, (32, 8)), (32, 8, (32, 8))],
)
def test_the_smallest_that_holds_it(prompt: int, new: int, shape: tuple[int, int]) -> None:
    assert choose_shape(KNOBS, prompt, new) == Shape(*shape, groups=3, rows=2)


@pytest.mark.parametrize(("singles", "groups"), [(0, 3), (5, 5)])
def test_a_prompt_of_one_sample_has_one_row(singles: int, groups: int) -> None:
    knobs = dataclasses.replace(KNOBS, singles=singles)
    assert choose_shape(knobs, 1, 1, alone=True) == Shape(16, 4, groups=groups, rows=1)


@pytest.mark.parametrize(
    ("prompt", "new", "why"),
    [
        (0, 1, "prompt is empty"),
        (1, 0, "0 new tokens"),
        (33, 1, "the prompt has 33 tokens.*prompt_buckets is 32"),
        (1, 9, "max_new_tokens is 9 tokens.*new_buckets is 8"),
    ],
)
def test_what_fits_nowhere_is_refused(prompt: int, new: int, why: str) -> None:
    with pytest.raises(DoesNotFit, match=why):
        choose_shape(KNOBS, prompt, new)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"prompt_buckets": ()}, "prompt_buckets"),
        ({"prompt_buckets": (32, 16)}, "prompt_buckets"),
        ({"prompt_buckets": (12,)}, "not a multiple of decoding.prefill_chunk 8"),
        ({"new_buckets": (8, 8)}, "new_buckets"),
        ({"groups": 0}, "groups=0"),
        ({"singles": -1}, "singles=-1"),
        ({"steps_per_round": -1}, "steps_per_round=-1"),
    ],
)
def test_knobs_that_cannot_be_run(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        check_shapes(
            DecodingKnobs(
                **{"prompt_buckets": (16,), "new_buckets": (8,), "prefill_chunk": 8, **wrong}
            )
        )
