"""What did a command do that is one stage of a run, and what is there now?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ste_jax.reporting.funnel import finetuned, funnel, iteration_steps, pool_steps
from ste_jax.reporting.phases import Reports
from ste_jax.reporting.tables import render, render_steps, work_table
from ste_jax.run.layout import RunDir
from ste_jax.run.metrics_log import read_metrics
from ste_jax.system import files


def stage_summary(run: RunDir, stage: str, iteration: int, reports: Reports, since: float) -> str:
    """What a stage's command prints at its end: the work that was done `since` it began (Unix
    seconds), and what the stage has made in all."""
    title = stage if stage in _OF_POOL else f"{stage} {iteration}"
    done = work_table([e for e in read_metrics(run.root) if e.get("time", 0) >= since], reports)
    now = f"done now\n{render(done)}" if done else "there was no work to do"
    if stage == "finetune":
        there = "\n".join(_judges(run, iteration))
    else:
        counts = funnel(run, reports)
        of = [each for each in counts["iterations"] if each["iteration"] == iteration]
        steps = pool_steps(counts) if stage in _OF_POOL else iteration_steps(of[0], reports)
        there = render_steps(steps)
    return f"{title}: {now}\n\n{title}: what is there\n{there}"


_OF_POOL = ("select", "pair")


def _judges(run: RunDir, iteration: int) -> Iterator[str]:
    """A line about the judge of each phase of an iteration."""
    for of, phase, out in finetuned(run):
        if of.index == iteration:
            curve = files.read_json(out.loss_curve)
            yield (
                f"{phase}: step {curve['best_step']} of {len(curve['steps'])} was kept"
                f"{_validated(curve)}; it lies in {out.checkpoint}"
            )


def _validated(curve: dict[str, Any]) -> str:
    at = {each["step"]: each["accuracy"] for each in curve["validations"]}
    found = at.get(curve["best_step"])
    return "" if found is None else f", with a validation accuracy of {found:.3f}"
