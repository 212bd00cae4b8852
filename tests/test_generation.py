"""Does what is asked of a model hold only what can be asked?"""

from __future__ import annotations

import math
from typing import Any

import pytest

from ste_jax.generation import Sampling, Usage
from ste_jax.system.errors import RequestError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", -1),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 1.5),
    ],
)
def test_a_number_out_of_its_range_is_refused(name: str, value: float) -> None:
    given: dict[str, Any] = {"max_new_tokens": 1, name: value}
    with pytest.raises(RequestError, match=rf"^{name}={value} is out of its range; it must be "):
        Sampling(**given)


def test_the_ends_of_the_ranges_are_taken() -> None:
    Sampling(max_new_tokens=0)
    Sampling(max_new_tokens=10**9, temperature=100, top_p=1, top_k=10**9, min_p=1)


def test_the_shares_of_a_generator_that_has_done_nothing() -> None:
    usage = Usage()
    assert (usage.tokens_per_second, usage.slot_occupancy, usage.prefill_share) == (0.0, 0.0, 0.0)
