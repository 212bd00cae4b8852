"""How often are the judges of a run right, and how do they differ?"""

from __future__ import annotations

from typing import Any

from ste_jax.config.schema import EvaluateKnobs
from ste_jax.evaluation.metrics import compare
from ste_jax.reporting.columns import read_verdicts
from ste_jax.reporting.examples import labelled_examples
from ste_jax.reporting.lengths import left_out
from ste_jax.reporting.page import Child, Safe, note, section, table, tag
from ste_jax.reporting.plots import agreement_plot, share_of
from ste_jax.reporting.sections.common import NOT_YET, across, judge_name
from ste_jax.reporting.sections.reading import example_details
from ste_jax.reporting.tables import measure, number
from ste_jax.run.layout import IterationDir, RunDir
from ste_jax.system.errors import WorkError
from ste_jax.tasks import Task

_STEPS = "step_"
"""The beginning of the keys that hold the shares of judgments right in one step."""
_HABITS = {
    "parsed_unforced": "verdict by itself",
    "forced": "by force",
    "unparsed": "no verdict",
    "ties": "tie",
    "accuracy_unforced": "right where by itself",
}


def agreement_section(task: Task, evaluations: dict[int, dict[str, Any]]) -> Safe:
    """A section on every judge's agreement on the held-out pairs of the run."""
    title = "Agreement with constructed labels"
    if not evaluations:
        return section(title, note(NOT_YET))
    last = evaluations[max(evaluations)]
    series = {
        name: [share_of(each, key) for each in evaluations.values()]
        for key, name in _measures(task, last).items()
    }
    return section(
        title,
        agreement_plot([judge_name(index) for index in evaluations], series, task.chances),
        note(
            f"On {last['n']} held-out pairs, {task.wording.asked}; votes: {last['votes']}."
            f"{left_out(last)} The labels were constructed by the recipe itself and not checked by "
            f"people. {_on_plots(task)}"
        ),
        tag("h3", "How they judge"),
        _habits(task, evaluations),
    )


def _on_plots(task: Task) -> str:
    """The sentences that explain the plots of judges' shares."""
    return (
        f"Whiskers are 95% intervals, resampled by pair. Dotted: {task.wording.chance}. A missing "
        f"{task.wording.verdict} counts as wrong."
    )


def labelled_sections(
    run: RunDir, task: Task, evaluations: dict[int, dict[str, Any]]
) -> list[Safe]:
    """A section for each set of labelled pairs."""
    names = dict.fromkeys(name for each in evaluations.values() for name in each.get("sets", {}))
    found = []
    for name in names:
        by_judge = {
            index: each["sets"][name]
            for index, each in evaluations.items()
            if name in each.get("sets", {})
        }
        last = by_judge[max(by_judge)]
        measures = {**_measures(task, last), "sound": "every step right"}
        series = {
            measure_name: [share_of(each, key) for each in by_judge.values()]
            for key, measure_name in measures.items()
            if key in last
        }
        parts: list[Child] = [
            agreement_plot([judge_name(index) for index in by_judge], series, task.chances),
            note(_of_set(task, last, any(each.get("greedy") for each in evaluations.values()))),
            _habits(task, by_judge),
        ]
        if any(key.startswith(_STEPS) for key in last):
            parts += [tag("h3", "Step by step"), _steps(by_judge), *_meanings(last)]
        for column in last["by"]:
            parts += [tag("h3", f"By {column}"), _by(column, by_judge)]
        chosen = labelled_examples(run, name)
        if chosen and len(by_judge) > 1:
            remark = (
                "Drawn by id: up to five that the last judge judges better than the first, and up "
                "to two that it judges worse."
            )
            parts += [tag("h3", "Judgments to read"), note(remark)]
            parts += [example_details(task, each) for each in chosen]
        found.append(section(f"Accuracy on {name}", *parts))
    return found


def _measures(task: Task, evaluation: dict[str, Any]) -> dict[str, str]:
    """Key -> name of the measures that are shown of a judge; one vote has no majority."""
    names = {"accuracy": f"single {task.wording.verdict}"}
    if task.questions_per_pair > 1:
        names["consistent_accuracy"] = f"right {task.wording.consistent}"
    if evaluation["votes"] > 1:
        names["majority_accuracy"] = "majority vote"
    return names


def _of_set(task: Task, measured: dict[str, Any], greedy: bool) -> str:
    """The sentences that say what is measured on a labelled set."""
    caption = f" {measured['told']}" if measured.get("told") else ""
    asked = "greedily" if greedy else "as in annotation"
    return (
        f"On {measured['n']} pairs, {task.wording.asked}: {measured['what']}."
        f"{left_out(measured)}{caption} Nothing was learnt or chosen by them. Judges were asked "
        f"{asked}. {_on_plots(task)}"
    )


def _meanings(measured: dict[str, Any]) -> list[Safe]:
    """A remark on what it means that a step of a judgment is right, for each step."""
    meanings = "; ".join(
        f"{name.replace('_', ' ')}: {meaning}"
        for name, meaning in measured.get("meanings", {}).items()
    )
    return [note(f"{meanings[0].upper()}{meanings[1:]}.")] if meanings else []


def _steps(by_judge: dict[int, dict[str, Any]]) -> Safe:
    """A table of how often each step of the judgments is right."""
    rows = []
    for index, evaluation in by_judge.items():
        row: dict[str, Any] = {"right in this step": judge_name(index)}
        for key in evaluation:
            if key.startswith(_STEPS):
                row[key.removeprefix(_STEPS)] = evaluation[key]  # and what ends in _ci95
        rows.append(row)
    return across(rows)


def _by(column: str, by_judge: dict[int, dict[str, Any]]) -> Safe:
    """A table of every judge's accuracy on each group of a set's pairs."""
    groups = by_judge[max(by_judge)]["by"][column]
    too_long = any(each.get("n_too_long") for each in groups.values())
    judges = map(judge_name, by_judge)  # a column may have one of these names
    header = [column, "pairs", *(["too long"] if too_long else []), *judges]
    body = []
    for group, of in groups.items():
        measured = [each["by"].get(column, {}).get(group, {}) for each in by_judge.values()]
        cells = [measure(each.get("accuracy"), each.get("accuracy_ci95")) for each in measured]
        left_out = [number(of.get("n_too_long"))] if too_long else []
        body.append([group, number(of["n"]), *left_out, *cells])
    return table(header, body)


def _habits(task: Task, evaluations: dict[int, dict[str, Any]]) -> Safe:
    """A table of shares of the single verdicts that show habits and are no merit by themselves."""
    habits = {**_HABITS, **task.wording.shares}
    rows = [
        {
            "of the single verdicts": judge_name(index),
            **{name: evaluation.get(key) for key, name in habits.items()},
            **{f"{name}_ci95": evaluation.get(f"{key}_ci95") for key, name in habits.items()},
        }
        for index, evaluation in evaluations.items()
    ]
    return across(rows)


def difference_section(
    task: Task,
    evaluated: list[IterationDir],
    evaluations: dict[int, dict[str, Any]],
    config: dict[str, Any],
) -> Safe:
    """A section that compares the last judge with the seed on the same held-out pairs."""
    title = "Does the last judge differ from the seed?"
    if len(evaluated) < 2 or evaluated[0].index != 0:
        return section(title, note(NOT_YET))
    seed, last = evaluated[0], evaluated[-1]
    bootstrap = config.get("evaluate", {}).get("bootstrap", EvaluateKnobs().bootstrap)
    try:
        difference = compare(
            task,
            seed.heldout.prompts.rows(),
            read_verdicts(seed.heldout.judgments),
            read_verdicts(last.heldout.judgments),
            bootstrap=bootstrap,
        )
    except WorkError as error:
        return section(title, note(f"The two were not judged on the same prompts: {error}"))
    body: list[list[Child]] = []
    for key, name in _measures(task, evaluations[last.index]).items():
        if difference[f"{key}_ci95"] is None:
            return section(title, note("Of no pair were both judges asked."))
        low, high = difference[f"{key}_ci95"]
        reading = "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
        body.append(
            [
                name,
                number(evaluations[seed.index].get(key)),
                number(evaluations[last.index].get(key)),
                f"{difference[key]:+.3f} [{low:+.3f}, {high:+.3f}]",
                reading,
            ]
        )
    header = ["", "seed", judge_name(last.index), "difference", "reading"]
    remark = "Both judges on the same pairs, resampled together; an interval with 0 shows nothing."
    return section(title, table(header, body), note(remark))
