"""Is what an answer says read rightly, and are wrong answers wrong?"""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from ste_jax.pico.answers import (
    STYLES,
    draw_answer,
    is_right,
    stated,
    write_answer,
    wrong_solution,
)
from ste_jax.pico.world import Task, understand

from .test_world import tasks


@given(tasks(), st.integers(0, len(STYLES) - 1), st.booleans())
def test_what_is_written_is_what_is_stated(task: Task, style: int, working: bool) -> None:
    answer = write_answer(task.solution, style, working)
    assert stated(answer) == task.solution.answer
    assert is_right(task, answer)


@given(tasks(), st.integers(0, 2**32))
def test_a_wrong_answer_states_something_else(task: Task, seed: int) -> None:
    random = Random(seed)
    wrong = draw_answer(wrong_solution(task, random), random)
    assert stated(wrong) != task.solution.answer
    assert not is_right(task, wrong)


def test_a_slip_is_carried_on() -> None:
    task = understand("Mia has 23 apples, finds 14 and loses 9. How many are left?")
    assert task is not None
    for seed in range(50):
        steps = wrong_solution(task, Random(seed)).steps
        first, second = (step.split(" = ") for step in steps)
        assert second[0] == f"{first[1]} - 9"


def test_the_other_operand_stays_though_it_equals_the_result() -> None:
    task = understand("Add up 4, 5 and 9.")
    assert task is not None
    for seed in range(50):
        assert wrong_solution(task, Random(seed)).steps[1].split(" = ")[0].endswith(" + 9")


@given(tasks(), st.integers(0, 2**32))
def test_a_near_miss_is_not_refused_by_sight(task: Task, seed: int) -> None:
    number = int(wrong_solution(task, Random(seed)).answer.split(" ")[-1])
    assert number > 0 and (number <= 31 or task.kind != "later")


def test_a_right_result_by_a_wrong_step_is_not_right() -> None:
    task = understand("Mia has 23 apples, finds 14 and loses 9. How many are left?")
    assert task is not None
    assert is_right(task, "23 + 14 = 37, 37 - 9 = 28. The answer is 28.")
    assert not is_right(task, "23 + 14 = 36, 36 - 9 = 28. The answer is 28.")
    assert not is_right(task, "14 + 14 = 28. The answer is 28.")
