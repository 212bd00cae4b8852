"""Packing loses nothing, mixes nothing, and depends on nothing but what is packed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.config.schema import FinetuneKnobs
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.packing import Example, Plan, Rows, fill, pack, plan
from ste_jax.system.errors import RequestError

IDS = st.integers(1, 99)


@st.composite
def example_lists(draw: Any) -> list[Example]:
    examples = []
    for number in range(draw(st.integers(0, 25))):
        completion = draw(st.lists(IDS, max_size=12))
        weights = st.lists(
            st.sampled_from([0.0, 1.0, 2.5]), min_size=len(completion), max_size=len(completion)
        )
        examples.append(
            Example(
                id=f"x{number}",
                prompt_ids=draw(st.lists(IDS, min_size=1, max_size=12)),
                completion_ids=completion,
                weights=draw(st.none() | weights),
            )
        )
    return examples


def knobs(**changes: Any) -> TrainingKnobs:
    return dataclasses.replace(
        TrainingKnobs.of(FinetuneKnobs(sequence_length=16, batch_rows=3)), **changes
    )


def all_rows(planned: Plan, examples: list[Example], used: TrainingKnobs) -> list[Rows]:
    return [
        fill(
            rows,
            examples,
            count=used.batch_rows,
            sequence_length=used.sequence_length,
            targets_per_row=planned.targets_per_row,
        )
        for rows in planned.steps
    ]


def pieces(rows: Rows) -> list[tuple[list[int], list[tuple[int, int, float]]]]:
    """Every segment's tokens and its targets as (place in the segment, token, weight), read
    back."""
    found = []
    for row in range(len(rows.tokens)):
        for segment in range(1, rows.segment_ids[row].max() + 1):
            (at,) = np.nonzero(rows.segment_ids[row] == segment)
            assert np.array_equal(at, np.arange(at[0], at[-1] + 1))  # in one piece
            assert np.array_equal(rows.positions[row, at], np.arange(len(at)))
            learnt = [
                (int(place - at[0]), int(token), float(weight))
                for place, token, weight in zip(
                    rows.target_at[row], rows.targets[row], rows.weights[row], strict=True
                )
                if weight > 0 and at[0] <= place <= at[-1]
            ]
            found.append((rows.tokens[row, at].tolist(), learnt))
    return found


def wanted(example: Example) -> tuple[list[int], list[tuple[int, int, float]]]:
    tokens = [*example.prompt_ids, *example.completion_ids]
    weights = example.weights or [1.0] * len(example.completion_ids)
    start = len(example.prompt_ids) - 1
    learnt = [
        (start + i, token, weight)
        for i, (token, weight) in enumerate(zip(example.completion_ids, weights, strict=True))
        if weight > 0
    ]
    return tokens, learnt


@given(examples=example_lists(), seed=st.integers(0, 5), epochs=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_example_once_and_reads_back(
    examples: list[Example], seed: int, epochs: int
) -> None:
    used = knobs(epochs=float(epochs))
    planned = plan(examples, used, seed)
    batches = all_rows(planned, examples, used)
    read = sorted(piece for rows in batches for piece in pieces(rows))
    kept = [
        example
        for example in examples
        if example.length <= 16 and example.id not in planned.unweighted
    ]
    assert read == sorted([wanted(example) for example in kept] * epochs)
    assert set(planned.too_long) == {e.id for e in examples if e.length > 16}
    assert set(planned.unweighted) == {
        e.id for e in examples if e.length <= 16 and not wanted(e)[1]
    }
    # What is not a token is padding, and no planned row is without a target.
    for number, rows in enumerate(batches):
        assert np.all((rows.tokens == 0) == (rows.segment_ids == 0))
        learns = (rows.weights > 0).any(axis=1)
        assert learns[: len(planned.steps[number])].all()
        assert len(planned.steps[number]) == 3 or number == len(batches) - 1


@given(examples=example_lists(), shuffle=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_plan_does_not_depend_on_the_order_of_the_examples(
    examples: list[Example], shuffle: Any
) -> None:
    def told(examples: list[Example]) -> list[list[list[str]]]:
        steps = plan(examples, knobs(epochs=2.0), 1).steps
        return [[[examples[i].id for i in row] for row in step] for step in steps]

    other = list(examples)
    shuffle.shuffle(other)
    assert told(other) == told(examples)


@given(lengths=st.lists(st.integers(1, 10), max_size=40))
def test_pack_is_first_fit(lengths: list[int]) -> None:
    rows: list[list[int]] = []
    for index, length in enumerate(lengths):
        for row in rows:
            if sum(lengths[i] for i in row) + length <= 10:
                row.append(index)
                break
        else:
            rows.append([index])
    assert pack(lengths, 10) == rows


def many(count: int) -> list[Example]:
    return [Example(id=str(i), prompt_ids=[1] * 5, completion_ids=[2] * 4) for i in range(count)]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "rows"),
    # 20 examples, one to a row of 16: 20 rows an epoch
    [(1.0, 0, 20), (0.25, 0, 5), (1.5, 0, 30), (0.01, 0, 1), (2.0, 4, 12), (1.0, 100, 20)],
)
def test_epochs_and_max_steps_bound_the_rows(epochs: float, max_steps: int, rows: int) -> None:
    planned = plan(many(20), knobs(epochs=epochs, max_steps=max_steps), 0)
    assert sum(len(step) for step in planned.steps) == rows
    assert len(planned.steps) == -(-rows // 3)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    examples = many(20)
    first = plan(examples, knobs(epochs=2.0, batch_rows=20), 0).steps
    assert sorted(first[0]) == sorted(first[1])
    assert first[0] != first[1]
    assert plan(examples, knobs(batch_rows=20), 1).steps[0] != first[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"accumulate": 2}, "accumulate=2"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"batch_rows": 0}, "batch_rows=0"),
        ({"epochs": 0.0}, "epochs=0.0"),
        ({"max_steps": -1}, "max_steps=-1"),
    ],
)
def test_knobs_that_allow_no_step_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        plan(many(3), knobs(**changes), 0)


def test_an_example_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(ValueError, match="e7"):
        Example(id="e7", prompt_ids=[], completion_ids=[1])
    with pytest.raises(ValueError, match="e8: 1 weights for 2"):
        Example(id="e8", prompt_ids=[1], completion_ids=[1, 2], weights=[1.0])
