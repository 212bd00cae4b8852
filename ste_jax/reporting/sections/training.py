"""How did the trainings of a run go, and what work was done?"""

from __future__ import annotations

from typing import Any

from ste_jax.reporting.funnel import finetuned
from ste_jax.reporting.page import Child, Safe, note, section, table, tag
from ste_jax.reporting.phases import Reports, report_of
from ste_jax.reporting.plots import loss_plot
from ste_jax.reporting.sections.common import NOT_YET, across, judge_name
from ste_jax.reporting.tables import cells, finetuning_table, iteration_table, stage_table
from ste_jax.run.layout import RunDir
from ste_jax.system import files


def work_section(run: RunDir, counts: dict[str, Any], reports: Reports) -> Safe:
    """A section with the tables of iterations, of fine-tuning and of the stages' work."""
    title = "Work and result"
    iterations, stages = iteration_table(run, reports, counts), stage_table(run, reports)
    parts: list[Child] = []
    if iterations:
        parts.append(across(iterations))
    trained = finetuning_table(run, reports)
    if trained:
        parts += [tag("h3", "By phase of fine-tuning"), across(trained)]
        notes = {report_of(reports, row["stage"]).note for row in trained}
        parts += [note(text) for text in sorted(notes) if text]
    if stages:
        parts += [tag("h3", "By stage"), table(*cells(stages))]
        parts.append(note("Work whose results were written, also where a changed knob threw "
                          "them away later; seconds are summed over processes, FLOPs are the "
                          "model's."))  # fmt: skip
    return section(title, *(parts or [note(NOT_YET)]))


def loss_section(run: RunDir, reports: Reports) -> Safe:
    """A section with loss and validation accuracy over the optimizer steps of each training."""
    parts: list[Child] = []
    phases = finetuned(run)
    for iteration, phase, out in phases:
        curve = files.read_json(out.loss_curve)
        steps = [(each["step"], each["loss"]) for each in curve["steps"]]
        checks = [
            (each["step"], each["accuracy"])
            for each in curve["validations"]
            if each["accuracy"] is not None
        ]
        if steps or checks:
            name, plain = judge_name(iteration.index), report_of(reports, phase).plain
            several = len([each for each, *_ in phases if each.index == iteration.index]) > 1
            parts.append(tag("h3", f"{name}: {phase}" if several or not plain else name))
            parts.append(loss_plot(steps, checks, curve.get("best_step")))
    return section("Fine-tuning", *(parts or [note(NOT_YET)]))
