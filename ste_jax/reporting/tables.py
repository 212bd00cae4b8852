"""What did each iteration take in, cost, and give? The answers are rows, and text for a terminal.

Counts come from the run's tables (see `funnel`), measures from each iteration's `evaluation.json`,
and the work done (tokens, seconds, FLOPs) from the events of `metrics.jsonl`. Seconds are summed
over processes. All work whose results were written counts, even if a changed knob threw them away
later. Work that a kill ended before it was written does not count, and an optimizer step that was
taken again counts once, the last time.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from ste_jax.reporting.funnel import (
    check_sums,
    finetuned,
    funnel,
    iteration_steps,
    pool_steps,
    reasons,
    task_of,
)
from ste_jax.reporting.lengths import length_table
from ste_jax.reporting.phases import PhaseReport, Reports, Step, name_of, report_of
from ste_jax.run.layout import IterationDir, RunDir
from ste_jax.run.metrics_log import read_metrics
from ste_jax.system import files
from ste_jax.tasks import Task

Event = dict[str, Any]
_WIDTH = 100


def iteration_table(
    run: RunDir, reports: Reports, counts: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """One row per judge, from the seed's iteration 0; values that are not there (yet) are null.

    `counts` is the run's funnel, if the caller has it. Each measure is followed by its interval,
    `<name>_ci95`. `tokens_drawn` were generated (`drawn_per_second` in the stages that draw any,
    prompts included), `tokens_trained` went through optimizer steps; `flops` and `seconds` are of
    both. The work of iteration 0 is the selection, the pairs and the seed's evaluation.
    """
    counts = counts or funnel(run, reports)
    events = read_metrics(run.root)
    annotated = {each["iteration"]: each for each in counts["iterations"]}
    iterations = run.iterations()
    evaluations = [_evaluation(each) for each in iterations]
    several = any(each["votes"] > 1 for each in evaluations if each)
    task = task_of(run)
    measures = [
        (title, key)
        for title, key in _MEASURES
        if (several or key != "majority_accuracy")
        and (task.questions_per_pair > 1 or key != "consistent_accuracy")
    ]
    rows = [
        _row(
            each,
            task,
            counts,
            annotated.get(each.index),
            _works(events, reports, each.index),
            evaluation,
            measures,
        )
        for each, evaluation in zip(iterations, evaluations, strict=True)
    ]
    if any(each.get("n_too_long") for each in evaluations):
        for row, each in zip(rows, evaluations, strict=True):
            row["held_out_pairs_too_long"] = each.get("n_too_long")
    return _with_sets(rows, task, evaluations)


_MEASURES = (
    ("agreement_with_constructed_labels", "accuracy"),
    ("consistent_agreement", "consistent_accuracy"),
    ("majority_agreement", "majority_accuracy"),
    ("verdict_without_force", "parsed_unforced"),
)


def _evaluation(iteration: IterationDir) -> dict[str, Any]:
    there = iteration.evaluation.exists()
    return files.read_json(iteration.evaluation) if there else {}


def _with_sets(
    rows: list[dict[str, Any]], task: Task, evaluations: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows with the judges' accuracies on the sets of labelled pairs."""
    sets = [evaluation.get("sets", {}) for evaluation in evaluations]
    everywhere = task.wording.consistent.replace(" ", "_")
    names = dict.fromkeys(name for each in sets for name in each)
    own = set(rows[0]) if rows else set()
    for row, measured in zip(rows, sets, strict=True):
        for name in names:
            for title, key in (
                (f"{name}_pairs", "n"),
                (f"{name}_accuracy", "accuracy"),
                (f"{name}_{everywhere}", "consistent_accuracy"),
                (f"{name}_every_step_right", "sound"),
            ):
                if any(key in each.get(name, {}) for each in sets):
                    # a set may be called `validation`, and no set `set validation`
                    title = f"set {title}" if title in own else title
                    row[title] = measured.get(name, {}).get(key)
                    if key != "n":
                        row[f"{title}_ci95"] = measured.get(name, {}).get(f"{key}_ci95")
            if any(each.get(name, {}).get("n_too_long") for each in sets):
                row[f"{name}_too_long"] = measured.get(name, {}).get("n_too_long")
    return rows


def _row(
    iteration: IterationDir,
    task: Task,
    counts: dict[str, Any],
    annotated: dict[str, Any] | None,
    works: tuple[list[Event], list[Event]],
    evaluation: dict[str, Any],
    measures: Iterable[tuple[str, str]],
) -> dict[str, Any]:
    work, steps = works
    drawn, trained = _sum(work), _sum(steps)
    drawing = _sum([event for event in work if event.get("new_tokens")])
    split = counts["selection"]["kept"].get("train", {})
    row: dict[str, Any] = {
        "iteration": iteration.index,
        "instructions": sum(split.values()) if annotated else None,
        "pairs": counts["pairs"]["by_split"].get("train", 0) if annotated else None,
        "samples_drawn": _samples(annotated) if annotated else None,
        **{
            f"kept_{name}": annotated["kept"][name] if annotated else None
            for name in task.classes or task.decided[:1]
        },
        "tokens_drawn": drawn.get("new_tokens"),
        "drawn_per_second": _rate(drawn.get("new_tokens"), drawing.get("seconds")),
        "tokens_trained": trained.get("tokens"),
        "flops": _add(drawn.get("flops"), trained.get("flops")),
        "seconds": _add(drawn.get("seconds"), trained.get("seconds")),
        "validation_accuracy": _validation(iteration),
    }
    row["held_out_pairs"] = evaluation.get("n")
    for name, key in measures:
        row[name] = evaluation.get(key)
        row[f"{name}_ci95"] = evaluation.get(f"{key}_ci95")
    return row


def _works(
    events: list[Event], reports: Reports, iteration: int
) -> tuple[list[Event], list[Event]]:
    """The events of an iteration's work, and those of its optimizer steps."""
    mine = [event for event in events if event.get("iteration") == iteration]
    return _work(mine), _steps(mine, reports)


def _samples(annotated: dict[str, Any]) -> int:
    """How many judgments were drawn to learn from, those for single phases included."""
    own = (counts.get("judgments", 0) for counts in annotated["phases"].values())
    return int(annotated["judgments"] + sum(own))


def stage_table(run: RunDir, reports: Reports) -> list[dict[str, Any]]:
    """One row per stage and iteration, in the order in which they first did work, and one of sums.

    `prompt_tokens` were read; `cached_prompt_tokens` of them were already computed.
    """
    events = read_metrics(run.root)
    rows = work_table(events, reports)
    if rows:
        everything = _sum([*_work(events), *_steps(events, reports)])
        rows.append(_stage_row("whole run", None, everything))
    return rows


def work_table(events: list[Event], reports: Reports) -> list[dict[str, Any]]:
    """One row per stage and iteration of the work in some events, in the order in which it was
    begun."""
    groups: dict[tuple[str, Any], list[Event]] = {}
    for event in [*_work(events), *_steps(events, reports)]:
        stage = _stage_of(event, reports)
        groups.setdefault((stage, event.get("iteration")), []).append(event)
    first = sorted(groups, key=lambda key: min(e.get("time", 0) for e in groups[key]))
    return [_stage_row(stage, index, _sum(groups[stage, index])) for stage, index in first]


def _stage_of(event: Event, reports: Reports) -> str:
    """The name that a table gives to the stage of an event."""
    if event["event"] != "train_step":
        return str(event.get("stage"))
    name = name_of(reports, event.get("stage"))
    return report_of(reports, name).work or f"train {name}"


def finetuning_table(run: RunDir, reports: Reports) -> list[dict[str, Any]]:
    """One row per phase of fine-tuning; none where a run has only the plain phase and no example
    was cut off.

    `examples` were given to the phase; some of them were too long for a row and left out, cut off,
    or without a token to learn. The other columns are about its judge. Phases may add columns.
    """
    phases = finetuned(run)
    names = dict.fromkeys(name for _, name, _ in phases)
    every = [report_of(reports, name) for name in names]
    rows = [
        _finetuning_row(iteration, out, name, report_of(reports, name), every)
        for iteration, name, out in phases
    ]
    plain = all(report.plain for report in every) and not any(row["truncated"] for row in rows)
    return [] if plain else rows


def _finetuning_row(
    iteration: IterationDir,
    out: IterationDir,
    name: str,
    report: PhaseReport,
    every: Sequence[PhaseReport],
) -> dict[str, Any]:
    """The row of a phase, with the columns of `every` phase of the run."""
    curve, evaluation = files.read_json(out.loss_curve), _evaluation(out)
    last, own = curve["steps"][-1], report.of_examples(iteration)
    return {
        "iteration": iteration.index,
        "stage": name,
        "examples": curve.get("examples"),
        **{key: own.get(key) for each in every for key in each.example_columns},
        "too_long": len(curve.get("too_long", ())),
        "truncated": len(curve.get("truncated", ())),
        "without_target": len(curve.get("without_target", ())),
        "steps": len(curve["steps"]),
        "kept_step": curve.get("best_step"),
        "last_loss": last["loss"],
        **{f"last_{key}": last.get(key) for each in every for key in each.step_columns},
        "validation_accuracy": _validation(out),
        "agreement_with_constructed_labels": evaluation.get("accuracy"),
        "agreement_with_constructed_labels_ci95": evaluation.get("accuracy_ci95"),
        "consistent_agreement": evaluation.get("consistent_accuracy"),
        "consistent_agreement_ci95": evaluation.get("consistent_accuracy_ci95"),
    }


def _stage_row(stage: str, iteration: Any, total: dict[str, Any]) -> dict[str, Any]:
    seconds, new = total.get("seconds"), total.get("new_tokens")
    return {
        "stage": stage,
        "iteration": iteration,
        "rows": total.get("rows"),
        "prompt_tokens": total.get("prompt_tokens"),
        "cached_prompt_tokens": total.get("cached_prompt_tokens"),
        "new_tokens": new,
        "trained_tokens": total.get("tokens"),
        "tokens_per_second": _rate(_add(new, total.get("tokens")), seconds),
        "flops": total.get("flops"),
        "seconds": seconds,
    }


def _work(events: Iterable[Event]) -> list[Event]:
    return [event for event in events if event.get("event") == "work"]


def _steps(events: Iterable[Event], reports: Reports) -> list[Event]:
    """The optimizer steps. One that was taken again after a kill counts once, the last time."""
    last = {
        (event.get("iteration"), name_of(reports, event.get("stage")), event.get("step")): event
        for event in events
        if event.get("event") == "train_step"
    }
    return list(last.values())


_SUMMED = (
    "rows", "prompt_tokens", "cached_prompt_tokens", "new_tokens", "tokens", "flops", "seconds",
)  # fmt: skip


def _sum(events: list[Event]) -> dict[str, Any]:
    """Sums of the events' numbers; a number that no event has is absent."""
    said = {key: [event[key] for event in events if event.get(key) is not None] for key in _SUMMED}
    return {key: sum(values) for key, values in said.items() if values}


def _add(one: Any, other: Any) -> Any:
    known = [value for value in (one, other) if value is not None]
    return sum(known) if known else None


def _rate(tokens: Any, seconds: Any) -> float | None:
    return tokens / seconds if tokens is not None and seconds else None


def _validation(iteration: IterationDir) -> float | None:
    """The validation accuracy of the checkpoint that was kept."""
    if not iteration.loss_curve.exists():
        return None
    curve = files.read_json(iteration.loss_curve)
    at = {each["step"]: each["accuracy"] for each in curve["validations"]}
    return at.get(curve.get("best_step"))


# ---------------------------------------------------------------------------------------------
# As text


def cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and body of a table as texts: a measure and its interval share a cell, and a missing
    value is a dash."""
    names = [name for name in rows[0] if not name.endswith("_ci95")] if rows else []
    body = [[measure(row[name], row.get(f"{name}_ci95")) for name in names] for row in rows]
    return [name.replace("_", " ") for name in names], body


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table in Markdown."""
    header, body = cells(rows)
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)]
    return "\n".join(lines)


def measure(value: Any, interval: Any) -> str:
    """A number for people, with its interval where there is one."""
    if interval is not None:
        return f"{number(value)} [{number(interval[0])}, {number(interval[1])}]"
    return number(value)


def number(value: Any) -> str:
    """A number for people: shares to three digits, large ones to what can be read."""
    if value is None:
        return "-"
    if not isinstance(value, (int, float)):
        return str(value)
    if abs(value) >= 1e9:
        return f"{value:.2e}"
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) <= 1:
        return f"{value:.3f}"
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def summary(run: RunDir, reports: Reports) -> str:
    """What `ste run` prints at its end: the funnel, the iterations and the stages."""
    counts = funnel(run, reports)
    steps = pool_steps(counts)
    for each in counts["iterations"]:
        steps += [
            (f"iteration {each['iteration']}: {name}", rows, lost)
            for name, rows, lost in iteration_steps(each, reports)
        ]
    funnel_rows = render_steps(steps)
    lengths, trained = length_table(run), finetuning_table(run, reports)
    parts = [
        f"Rows that passed each step, and why others did not\n{funnel_rows or '(nothing yet)'}",
        *(f"Does not add up: {wrong}" for wrong in check_sums(counts, reports)),
        *(f"Lengths of the answers, in characters\n{render(rows)}" for rows in [lengths] if rows),
        f"By iteration\n{render(iteration_table(run, reports, counts))}",
        *(f"By phase of fine-tuning\n{render(rows)}" for rows in [trained] if rows),
        f"By stage\n{render(stage_table(run, reports))}",
    ]
    return "\n\n".join(parts)


def render_steps(steps: Iterable[Step]) -> str:
    """Steps of the funnel as text: a line each, with how many rows passed it and why others did
    not."""
    return "\n".join(
        f"{name:36}{rows:>8,}   {reasons(lost)}".rstrip() for name, rows, lost in steps
    )


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned plain text: a line per row, or a column per row where lines would get too long."""
    if not rows:
        return "(nothing yet)"
    header, body = cells(rows)
    lines = aligned([*_wrapped(header, body), *body])
    if len(lines[0]) > _WIDTH:
        across = aligned([list(line) for line in zip(header, *body, strict=True)])
        lines = min(lines, across, key=lambda each: len(each[0]))
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(header: list[str], body: list[list[str]]) -> list[list[str]]:
    """The header broken into lines, so that each column is about as wide as its values."""
    columns = []
    for name, column in zip(header, zip(*body, strict=True), strict=True):
        width = max(len(text) for text in (*column, *name.split()))
        columns.append(textwrap.wrap(name, width))
    height = max(len(column) for column in columns)
    padded = [[""] * (height - len(column)) + column for column in columns]
    return [list(line) for line in zip(*padded, strict=True)]


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines. Aligns the first column to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
