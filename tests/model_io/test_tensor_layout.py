"""A slice of a parameter is the same slice whichever way the file has it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.model_io.tensor_layout import file_shape, read_slice, to_file

SIZES = {"embed": 6, "q_heads": 4, "head_dim": 3, "mlp": 5}


@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        ("(q_heads head_dim) embed", ("embed", "q_heads", "head_dim")),
        ("embed (q_heads head_dim)", ("q_heads", "head_dim", "embed")),
        ("embed mlp", ("mlp", "embed")),
        ("(q_heads head_dim)", ("q_heads", "head_dim")),
        ("embed", ("embed",)),
    ],
)
@given(data=st.data())
def test_any_slice_reads_what_was_written(
    layout: str, axes: tuple[str, ...], data: st.DataObject
) -> None:
    shape = [SIZES[axis] for axis in axes]
    parameter = np.arange(math.prod(shape)).reshape(shape)
    written = to_file(parameter, axes, layout)
    assert written.shape == file_shape(layout, SIZES)
    index = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        index.append(slice(start, data.draw(st.integers(start + 1, size))))
    found = read_slice(lambda at: written[at], layout, axes, SIZES, tuple(index))
    np.testing.assert_array_equal(found, parameter[tuple(index)])


def test_the_heads_of_a_matrix_are_rows_in_order() -> None:
    parameter = np.arange(6 * 4 * 3).reshape(6, 4, 3)
    written = to_file(parameter, ("embed", "q_heads", "head_dim"), "(q_heads head_dim) embed")
    assert written[2 * 3 + 1, 5] == parameter[5, 2, 1]


def test_only_the_rows_of_the_wanted_heads_are_read() -> None:
    asked = []

    def read(index: tuple[slice, ...]) -> np.ndarray:
        asked.append(index)
        return np.zeros([part.stop - part.start for part in index])

    axes = ("embed", "q_heads", "head_dim")
    wanted = (slice(2, 4), slice(1, 3), slice(0, 3))
    read_slice(read, "(q_heads head_dim) embed", axes, SIZES, wanted)
    assert asked == [(slice(3, 9), slice(2, 4))]
