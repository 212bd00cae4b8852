"""How are answers written in pico's world, how may one be wrong, and what does one say?"""

from __future__ import annotations

import re
from random import Random

from ste_jax.pico.kinds import MONTHS, Solution, days_in
from ste_jax.pico.world import Task

STYLES = ("The answer is {answer}.", "It is {answer}.", "{answer}")
"""Sentences that state an answer."""
BARE = len(STYLES) - 1

_STATED = re.compile(r"(?:The answer is|It is) ([^.\n]+)\.$")


def write_answer(solution: Solution, style: int, working: bool = True) -> str:
    """An answer: the steps, then a sentence that states the result; or the bare result alone."""
    said = STYLES[style].format(answer=solution.answer)
    steps = ", ".join(solution.steps)
    return f"{steps}. {said}" if steps and working and style != BARE else said


def draw_answer(solution: Solution, draw: Random) -> str:
    """An answer in a random style; in a third of the cases without its steps."""
    style = draw.choices(range(len(STYLES)), (6, 2, 2))[0]
    return write_answer(solution, style, working=draw.random() < 0.67)


def stated(answer: str) -> str:
    """The result that an answer states."""
    found = _STATED.search(answer.strip())
    return found[1] if found else answer.strip().rstrip(".")


def is_right(task: Task, answer: str) -> bool:
    """Whether an answer states the right result, with the steps of the solution or with none."""
    found = _STATED.search(answer.strip())
    working = answer.strip()[: found.start()] if found else ""
    right = working in ("", f"{', '.join(task.solution.steps)}. ")
    return right and stated(answer) == task.solution.answer


def wrong_solution(task: Task, draw: Random) -> Solution:
    """A near miss of the same task: a slip in one step, carried on, or in the result."""
    right = task.solution
    while True:
        wrong = _slip(task, right, draw)
        if wrong.answer != right.answer and _could_be(wrong.answer):
            return wrong


def _could_be(answer: str) -> bool:
    """Whether an answer is not wrong at first sight, as zero or the 31st of June would be."""
    month, _, number = answer.rpartition(" ")
    return 0 < int(number) <= (days_in(MONTHS.index(month)) if month else 10_000)


def _slip(task: Task, right: Solution, draw: Random) -> Solution:
    if not right.steps:
        return Solution(str(draw.choice(task.values["numbers"])))
    at = draw.randrange(len(right.steps))
    steps = list(right.steps[:at])
    left, _, result = right.steps[at].partition(" = ")
    slipped = _near_number(int(result), draw)
    steps.append(f"{left} = {slipped}")
    previous, last = result, str(slipped)
    for step in right.steps[at + 1 :]:
        left, _, result = step.partition(" = ")
        _, sign, b = left.split(" ")
        value = int(last) + int(b) if sign == "+" else int(last) - int(b)
        steps.append(f"{last} {sign} {b} = {value}")
        previous, last = result, str(value)
    stem = right.answer.removesuffix(previous)
    return Solution(f"{stem}{last}", tuple(steps))


def _near_number(value: int, draw: Random) -> int:
    far = (-10, 10) if value > 10 else ()
    shift: int = draw.choice((-2, -1, 1, 2, *far))
    return max(0, value + shift)
