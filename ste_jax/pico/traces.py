"""What does a written check of two answers look like, and is one right throughout?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ste_jax.pico.answers import is_right, stated, write_answer
from ste_jax.pico.world import Task, understand
from ste_jax.tasks.pairwise import FIRST, SECOND, mark

_TRACE = re.compile(
    r"(?P<own>[^\n]+)\n"
    r"A says (?P<a>[^\n:]+) against (?P<own_a>[^\n:]+): (?P<same_a>same|different)\.\n"
    r"B says (?P<b>[^\n:]+) against (?P<own_b>[^\n:]+): (?P<same_b>same|different)\.\n"
    + re.escape(mark("VERDICT")).replace("VERDICT", f"(?P<verdict>{FIRST}|{SECOND})")
)


def compared(said: str, own: str) -> str:
    """The comparison of a stated result with the judge's own."""
    return f"{said} against {own}: {'same' if said == own else 'different'}"


def write_trace(task: Task, answer_a: str, answer_b: str) -> str:
    """The judgment that is right in every step: solve the task, compare both answers, conclude."""
    verdict = FIRST if stated(answer_a) == task.solution.answer else SECOND
    return f"{write_check(task, [(FIRST, answer_a), (SECOND, answer_b)])}\n{mark(verdict)}"


def write_check(task: Task, answers: Iterable[tuple[str, str]]) -> str:
    """The check of some answers, given with their authors' names: the task is solved, and each
    answer is compared with the result."""
    right = task.solution
    comparisons = [
        f"{name} says {compared(stated(answer), right.answer)}." for name, answer in answers
    ]
    return "\n".join([write_answer(right, 0), *comparisons])


@dataclass(frozen=True)
class TraceCheck:
    """Which steps of a trace are right."""

    formed: bool
    solved: bool = False
    """The task is solved rightly, every step of it."""
    quoted: bool = False
    """Both answers, and the judge's own result, are quoted as they are."""
    compared: bool = False
    """Answers called the same are the same, and those called different are different."""
    concluded: bool = False
    """The verdict names the one answer that was found the same."""

    @property
    def before_the_verdict(self) -> bool:
        """Whether every step but the last is right."""
        return all((self.formed, self.solved, self.quoted, self.compared))

    @property
    def throughout(self) -> bool:
        """Whether every step is right."""
        return self.before_the_verdict and self.concluded


def led_to(text: str) -> str | None:
    """The letter that a judgment's own comparisons lead to, whatever its verdict: that of the one
    answer which it found the same."""
    found = _TRACE.fullmatch(text.strip())
    if found is None or found["same_a"] == found["same_b"]:
        return None
    return FIRST if found["same_a"] == "same" else SECOND


def check_trace(text: str, instruction: str, answer_a: str, answer_b: str) -> TraceCheck:
    """Recompute every step of a judgment."""
    found = _TRACE.fullmatch(text.strip())
    task = understand(instruction)
    if found is None or task is None:
        return TraceCheck(formed=False)
    own = stated(found["own"])
    same_a, same_b = found["same_a"] == "same", found["same_b"] == "same"
    return TraceCheck(
        formed=True,
        solved=is_right(task, found["own"]),
        quoted=found["a"] == stated(answer_a)
        and found["b"] == stated(answer_b)
        and found["own_a"] == found["own_b"] == own,
        compared=same_a == (found["a"] == found["own_a"])
        and same_b == (found["b"] == found["own_b"]),
        concluded=found["verdict"] == led_to(text),
    )
