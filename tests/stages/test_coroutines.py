"""Many rows over one generator: each gets its own completions, and no more than allowed are
open."""

from __future__ import annotations

import pytest

from ste_jax.generation import Request, Sampling
from ste_jax.stages.coroutines import drive
from tests.stages.scripted import Scripted

SAMPLING = Sampling(max_new_tokens=4)


def ask(id: str, samples: tuple[int, ...] = (0,)) -> Request:
    return Request(id=id, messages=(), sampling=SAMPLING, samples=samples)


def two_step(row: str):
    (first,) = yield (ask(f"{row}/one", (0, 1)),)
    second, third = yield (ask(f"{row}/two"), ask(f"{row}/three"))
    return [each.text for each in (*first, *second, *third)]


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize("in_flight", [1, 3, 100])
def test_every_row_gets_its_own_completions(last_first, in_flight):
    generator = Scripted(
        lambda request, sample: f"{request.id}#{sample}", last_first=last_first, in_flight=in_flight
    )
    rows = [f"r{n}" for n in range(10)]
    results = dict(drive(rows, two_step, generator))
    assert results == {
        row: [f"{row}/one#0", f"{row}/one#1", f"{row}/two#0", f"{row}/three#0"] for row in rows
    }


def test_the_stream_is_read_only_as_far_as_there_is_room():
    taken = []

    def rows():
        for n in range(100):
            taken.append(n)
            yield str(n)

    generator = Scripted(lambda request, sample: "x", in_flight=4)
    stream = drive(rows(), two_step, generator)
    next(stream)
    assert len(taken) <= 6
    assert generator.most_open <= 8


def test_a_row_that_asks_nothing_is_done_at_once():
    def silent(row: int):
        return row * 2
        yield ()

    assert list(drive([1, 2], silent, Scripted(lambda r, s: ""))) == [(1, 2), (2, 4)]
