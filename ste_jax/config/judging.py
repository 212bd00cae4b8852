"""Which task does a judge have, and what does the judge take from it where a config is silent?"""

from __future__ import annotations

import dataclasses

from ste_jax.config.schema import Config, JudgeKnobs
from ste_jax.system.errors import RequestError
from ste_jax.tasks import Task, task_named


def filled(knobs: JudgeKnobs) -> JudgeKnobs:
    """The knobs, with the task's own text to force a verdict where they name none.

    Raises:
      RequestError: there is no such task.
    """
    task = task_named(knobs.task)
    return dataclasses.replace(knobs, force_text=knobs.force_text or task.forcing.text)


def with_task(config: Config) -> Config:
    """The config, with the judge's template and forced text filled in from its task.

    Raises:
      RequestError: there is no such task.
    """
    asked = config.roles.judge
    template = asked.template or task_named(config.judge.task).template
    roles = dataclasses.replace(config.roles, judge=dataclasses.replace(asked, template=template))
    return dataclasses.replace(config, judge=filled(config.judge), roles=roles)


def check_task(config: Config) -> None:
    """Refuse knobs that ask what the judge's task cannot do.

    Raises:
      RequestError: there is no such task, or a knob asks what it cannot do; names the knob.
    """
    task: Task = task_named(config.judge.task)
    if not task.together:
        return
    if config.annotate.orders != "both":
        raise RequestError(
            f"annotate.orders={config.annotate.orders} chooses among a pair's questions, of which "
            f"judge.task={task.name} asks only one; set it to both"
        )
