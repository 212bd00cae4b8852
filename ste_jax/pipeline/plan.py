"""What would a start do with a run, and is it agreed that finished work is set aside for it?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etils import epath

from ste_jax.config.differences import differences
from ste_jax.config.from_plain import to_dict
from ste_jax.config.identity import fingerprint
from ste_jax.config.schema import Config
from ste_jax.parallel.processes import Processes
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.manifest import manifest_of
from ste_jax.run.changes import Changes, counted
from ste_jax.run.layout import RunDir
from ste_jax.run.plan import ALL, Plan, whole
from ste_jax.system import files, preemption, progress
from ste_jax.system.errors import RequestError
from ste_jax.system.terminal import confirmed


def foresee(
    config: Config, run: RunDir, steps: Callable[[Context], None], *, new_shapes: bool = False
) -> Plan:
    """What a start under a config, with nothing left open, would do with a run. `steps` are the
    steps of the start. Nothing is written. Process 0 alone.

    Raises:
      RequestError, WorkError: what the start would stop at.
    """
    changes = Changes(before=run.plain_config(), dry=True)
    with files.reading_only():
        manifest_of(config, run, new_shapes)
        if not run.begun():
            changes.first(ALL, f"{counted(config.iterations, 'iterations')}, for the first time")
            return Plan(str(run.root), changes.planned)
        steps(Context(config, run, Processes(), log=_no_log, changes=changes))
    differ = differences(changes.before, config) if changes.before else ()
    return Plan(str(run.root), changes.planned, differ)


def agree(plan: Plan, config: Config, *, yes: bool, ask: bool) -> None:
    """Show the plan, and see that it is agreed to where finished work is set aside for it: by
    `yes`, or, if a person may be asked, by an answer at the terminal. What was agreed to and then
    stopped is not asked about again, as long as it goes on under the same config.

    Raises:
      RequestError: it is not agreed to; nothing was changed.
      Preempted: asked to stop meanwhile; nothing was changed.
    """
    for line in plan.lines():
        progress.note(line)
    place = RunDir(epath.Path(plan.root)).agreed
    now = fingerprint("agreed", 1, to_dict(config))
    before = files.read_twice(place) or {}
    same = before.get("config") == now
    if plan.asking and same and plan.is_within(before["todo"]):
        progress.note("finished work is set aside for it, as was agreed to when this was begun")
    elif plan.asking:
        if not yes:
            _ask(plan, ask)
        todo = list(dict.fromkeys(whole(step.title) for step in plan.todo))
        files.write_twice(place, {"config": now, "todo": todo})
    elif before and not same:
        files.forget(place)


def _ask(plan: Plan, ask: bool) -> None:
    what = plan.consequence()
    answer = confirmed(f"{what}. Go on?") if ask else None
    preemption.poll()  # of several processes, one that is asked to stop only has a flag set
    own = f"to go on under the run's own knobs: ste run {plan.root}" if plan.differ else ""
    if answer is None:
        raise RequestError(
            f"{what}; nothing was changed. Say --yes (in Python yes=True) to go on so"
            + (f", or, {own}" if own else "")
        )
    if not answer:
        raise RequestError("nothing was changed" + (f"; {own}" if own else ""))


def _no_log(event: str, **values: Any) -> None:
    raise AssertionError(f"a dry pass does nothing, and {event} was done")
