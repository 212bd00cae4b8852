"""Which ways of judging are there? One file for each, behind the interface of `task`."""

from __future__ import annotations

from ste_jax.system.errors import RequestError
from ste_jax.tasks.pairwise import PAIRWISE
from ste_jax.tasks.pointwise import POINTWISE
from ste_jax.tasks.task import Forcing, Question, Task, Verdict, Wording

TASKS: dict[str, Task] = {task.name: task for task in (PAIRWISE, POINTWISE)}
"""The tasks by their names in `judge.task`."""


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
      RequestError: there is no such task; lists those that there are.
    """
    if name not in TASKS:
        raise RequestError(f"judge.task is {name!r}, which is none of {', '.join(TASKS)}")
    return TASKS[name]


__all__ = ["PAIRWISE", "TASKS", "Forcing", "Question", "Task", "Verdict", "Wording", "task_named"]
