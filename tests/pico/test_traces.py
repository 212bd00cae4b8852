"""Is a judgment that is right throughout known from one that only ends well?"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.pico.answers import draw_answer, wrong_solution
from ste_jax.pico.traces import check_trace, led_to, write_trace
from ste_jax.pico.world import Task
from ste_jax.tasks.pairwise import parse_verdict

from .test_world import tasks

ASKED = ("What is 47 + 38?", "The answer is 85.", "It is 86.")
SOUND = """\
47 + 38 = 85. The answer is 85.
A says 85 against 85: same.
B says 86 against 85: different.
[[A]]"""


@given(tasks(), st.integers(0, 2**32), st.booleans())
def test_what_is_written_is_right_throughout(task: Task, seed: int, first: bool) -> None:
    random = Random(seed)
    right = draw_answer(task.solution, random)
    wrong = draw_answer(wrong_solution(task, random), random)
    a, b = (right, wrong) if first else (wrong, right)
    trace = write_trace(task, a, b)
    assert check_trace(trace, task.instruction, a, b).throughout
    assert parse_verdict(trace).verdict == ("A" if first else "B")


def test_the_example_is_sound() -> None:
    assert check_trace(SOUND, *ASKED).throughout


@pytest.mark.parametrize(
    ("old", "new", "step"),
    [
        ("= 85. The answer is 85", "= 95. The answer is 95", "solved"),
        ("47 + 38 = 85. The", "46 + 38 = 85. The", "solved"),
        ("A says 85", "A says 86", "quoted"),
        ("against 85: d", "against 84: d", "quoted"),
        ("85: same", "85: different", "compared"),
        ("85: different", "85: same", "compared"),
        ("[[A]]", "[[B]]", "concluded"),
        ("A says", "C says", "formed"),
    ],
)
def test_a_wrong_step_is_found(old: str, new: str, step: str) -> None:
    check = check_trace(SOUND.replace(old, new), *ASKED)
    assert not getattr(check, step)
    assert not check.throughout
    assert check.before_the_verdict == (step == "concluded")


def test_what_the_comparisons_lead_to_does_not_hang_on_the_verdict() -> None:
    assert led_to(SOUND) == led_to(SOUND.replace("[[A]]", "[[B]]")) == "A"
    assert led_to(SOUND.replace("different", "same")) is None
    assert led_to("[[A]]") is None


def test_no_task_no_trace() -> None:
    assert not check_trace(SOUND, "Write a poem.", "a", "b").throughout
