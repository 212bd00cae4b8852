"""Are completions laid out once each, in widths that depend on themselves alone?"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.decoding.scoring import ROWS, batches, width


@given(st.lists(st.lists(st.integers(3, 50), max_size=40), max_size=25))
def test_every_completion_stands_in_one_batch(completions: list[list[int]]) -> None:
    seen = []
    for batch in batches(2, completions, 40):
        rows, size = batch.tokens.shape
        assert rows == ROWS
        for row, index in enumerate(batch.indices):
            completion = completions[index]
            assert size == width(len(completion), 40)
            np.testing.assert_array_equal(batch.targets[row, : len(completion)], completion)
            fed = [2, *completion][: len(completion)]
            np.testing.assert_array_equal(batch.tokens[row, : len(completion)], fed)
            seen.append(index)
    assert sorted(seen) == [index for index, one in enumerate(completions) if one]


def test_widths() -> None:
    assert [width(n, 40) for n in (1, 2, 4, 5, 16, 17, 40)] == [1, 4, 4, 16, 16, 40, 40]
