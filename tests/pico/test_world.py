"""Is a task of pico's world what its text says, and are the shares of the world kept apart?"""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.config.schema import PoolKnobs
from ste_jax.pico import make_data
from ste_jax.pico.answers import is_right, stated
from ste_jax.pico.kinds import KINDS, Kind
from ste_jax.pico.noise import draw_noise
from ste_jax.pico.world import Task, changes, draw_task, make_task, understand
from ste_jax.stages.intake import read_pool
from ste_jax.system.shipped import path_of

SHARES = ("known", "dev", "heldout")


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    random = Random(draw(st.integers(0, 2**32)))
    return draw_task(random, draw(st.sampled_from(SHARES)))


@given(tasks())
def test_an_instruction_is_understood_as_the_task_that_it_was_written_for(task: Task) -> None:
    assert understand(task.instruction) == task


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_kind_draws_operands_of_the_level_asked_for(kind: Kind, level: int) -> None:
    random = Random(0)
    for _ in range(200):
        assert make_task(kind, kind.draw(random, level), 0).level == level


def test_every_kind_has_several_phrasings_of_its_own() -> None:
    assert len(KINDS) >= 8
    assert min(len(kind.phrasings) for kind in KINDS) >= 3
    phrasings = [phrasing for kind in KINDS for phrasing in kind.phrasings]
    assert len(set(phrasings)) == len(phrasings)


def test_related_kinds_come_in_twos() -> None:
    related = {kind.name: kind.related for kind in KINDS if kind.related}
    assert related == {two: one for one, two in related.items()}


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        ("What is 47 + 38?", "85"),
        ("Take 9 away from 31.", "22"),
        ("How many minutes are 3 hours and 5 minutes?", "185"),
        ("It is February 27. What date is it 4 days later?", "March 3"),
        ("Count 20 days on from December 26. Which date is that?", "January 15"),
        ("Which number is the largest: 58, 61, 16?", "61"),
        ("Of the numbers 58, 61, which is the least?", "58"),
        ("Name the middle one of these numbers by size: 9, 11, 4.", "9"),
        ("Add up 12, 9 and 4.", "25"),
        ("Turn 3 dollars and 5 cents into cents.", "305"),
        ("Mia has 23 apples, finds 14 and loses 9. How many are left?", "28"),
    ],
)
def test_the_checker_knows_the_answer(instruction: str, answer: str) -> None:
    task = understand(instruction)
    assert task is not None and task.solution.answer == answer


@pytest.mark.parametrize(
    "instruction",
    [
        "It is June 45. What date is it 2 days later?",
        "Mia has 3 apples, finds 1 and loses 9. How many are left?",
        "What is 4 - 9?",
        "Which number lies between the others: 4, 9, 4?",
        "What date is 100 days after January 5?",
        "Which number is the largest: 5, 5?",
        "Turn 9 hours and 90 minutes into minutes.",
        "Write a poem about a dog.",
    ],
)
def test_what_cannot_be_is_not_understood(instruction: str) -> None:
    assert understand(instruction) is None


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_noise_is_no_task(seed: int) -> None:
    assert understand(draw_noise(Random(seed))) is None


@given(tasks(), st.integers(0, 2**32))
def test_a_changed_task_is_another_with_another_answer(task: Task, seed: int) -> None:
    changed = next(changes(task, Random(seed)))
    assert changed.identity != task.identity
    assert changed.solution.answer != task.solution.answer
    assert understand(changed.instruction) == changed


def test_order_that_says_nothing_is_no_other_task() -> None:
    one, two = understand("What is 47 + 38?"), understand("Add 38 and 47.")
    assert one is not None and two is not None and one.identity == two.identity


@pytest.mark.parametrize("mark", ["", ".", "?", "!"])
def test_the_mark_at_its_end_makes_no_other_task(mark: str) -> None:
    one, two = understand("What is 47 + 38?"), understand(f"What is 47 + 38{mark}")
    assert one is not None and two is not None and one.identity == two.identity


def test_names_and_things_make_no_other_task() -> None:
    one = understand("Mia has 23 apples, finds 14 and loses 9. How many are left?")
    two = understand("Tom had 23 books, got 14 more and gave 9 away. How many remain?")
    assert one is not None and two is not None
    assert (one.identity, one.share) == (two.identity, two.share)


def test_the_shipped_files_are_those_that_the_command_makes() -> None:
    for name, rows in make_data.tables().items():
        lines = (path_of("pico").parent / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == list(rows)


@pytest.mark.parametrize("name", ["same-task", "other-task"])
def test_the_label_of_a_shipped_pair_is_the_checkers_truth(name: str) -> None:
    for line in path_of(f"pico/{name}").read_text().splitlines():
        row = json.loads(line)
        task = understand(row["instruction"])
        better, worse = row["response_a"], row["response_b"]
        if row["label"] == "B":
            better, worse = worse, better
        assert task is not None
        assert is_right(task, better)
        assert stated(worse) != task.solution.answer


@pytest.mark.parametrize("name", ["same-task", "other-task"])
def test_shipped_pairs_are_of_as_many_tasks_of_each_kind_and_difficulty(name: str) -> None:
    rows = [json.loads(line) for line in path_of(f"pico/{name}").read_text().splitlines()]
    counts = Counter((row["kind"], row["level"]) for row in rows)
    assert set(counts.values()) == {make_data.HELDOUT} and len(counts) == 21
    for row in rows:
        task = understand(row["instruction"])
        assert task is not None and (task.kind, task.level) == (row["kind"], row["level"])


def test_held_out_tasks_are_fresh() -> None:
    pool = [row.messages[-1]["content"] for row in read_pool(PoolKnobs(path=("pico",)))]
    known = {task.identity for task in map(understand, pool) if task is not None}
    assert len(known) > 1000
    seen: set[str] = set()
    for name in ("same-task", "other-task"):
        rows = path_of(f"pico/{name}").read_text().splitlines()
        found = [understand(json.loads(row)["instruction"]) for row in rows]
        assert len(found) >= 250
        identities = {task.identity for task in found if task is not None}
        assert len(identities) == len(found), "some are no task or stand twice"
        assert {task.share for task in found if task is not None} == {"heldout"}
        assert not identities & (known | seen)
        seen |= identities
