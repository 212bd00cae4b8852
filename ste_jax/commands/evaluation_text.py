"""How is an evaluation shown at the prompt?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from ste_jax.commands.advice import for_no_verdict
from ste_jax.commands.evaluate import asked_in, judgments_in
from ste_jax.records import NOT_ASKED
from ste_jax.reporting.tables import render
from ste_jax.tasks import Task

MANY = 0.2
"""The share of judgments without a verdict above which there is advice."""
FEW_PAIRS = 30
"""Of fewer pairs than this, figures say next to nothing: an interval spans a third or more."""
LOPSIDED = 0.1
"""A judge that says one of two verdicts less often than this share does not look at the answers."""
_SHOWN = 20
"""How many groups of a column are shown, at the most."""


def as_json(result: Mapping[str, Any]) -> str:
    """All figures of an evaluation."""
    return json.dumps(result, indent=2, ensure_ascii=False)


def as_text(result: Mapping[str, Any], out: str) -> str:
    """The short table of an evaluation that lies in `out`, with a warning for what hides in it."""
    asked_of = asked_in(out)
    votes = "1 vote" if result["votes"] == 1 else f"{result['votes']} votes"
    head = [
        f"{result['model']} on {asked_of.data} ({result['benchmark']})",
        f"{result['n']:,} pairs, {asked_of.task.wording.asked}, {votes}; 95% intervals in brackets",
    ]
    parts = ["\n".join(head), render(list(_measures(result, asked_of.task)))]
    for column, groups in result.get("by", {}).items():
        parts.append(_groups(column, groups, asked_of.task))
    warnings = list(_warnings(result, out, asked_of.task, asked_of.options))
    end = f"all figures: {epath.Path(out) / 'evaluation.json'}, or --json"
    return "\n\n".join([*parts, "\n".join([*warnings, end])])


def _measures(result: Mapping[str, Any], task: Task) -> Iterator[dict[str, Any]]:
    """A row for each measure that is worth a look."""
    votes, chances = result["votes"], [*task.chances, None, None]
    both = f"right {task.wording.consistent}"
    rows = [("right", "accuracy", chances[0]), (both, "consistent_accuracy", chances[1])]
    if votes > 1:
        rows += [
            (f"majority of {votes} right", "majority_accuracy", chances[0]),
            (f"majority {both}", "majority_consistent_accuracy", chances[1]),
        ]
    rows += [(task.wording.shares.get(name, name), name, None) for name in task.shares]
    rows += [("no verdict", "unparsed", None)]
    if result["forced"]:
        own = ("right, of those without force", "accuracy_unforced", chances[0])
        rows += [("verdict by force", "forced", None), own]
    rows += [("a tie", "ties", None)] * bool(result["ties"])
    rows += [
        ("every step right", "sound", None),
        ("every step right, of those right", "sound_of_right", None),
    ]
    for title, key, chance in rows:
        if result.get(key) is not None:
            yield {
                "": title,
                "measured": result[key],
                "measured_ci95": result[f"{key}_ci95"],
                "by chance": chance,
            }


def _groups(column: str, groups: Mapping[str, Mapping[str, Any]], task: Task) -> str:
    """The table of accuracy by a column."""
    rows = []
    for name, group in list(groups.items())[:_SHOWN]:
        row = {f"by {column}": name, "pairs": group["n"]}
        for title, key in (("right", "accuracy"), (task.wording.consistent, "consistent_accuracy")):
            if key in group:
                row |= {title: group[key], f"{title}_ci95": group[f"{key}_ci95"]}
        rows.append(row)
    more = len(groups) - len(rows)
    return render(rows) + (f"\n(and {more} more)" if more > 0 else "")


def _warnings(
    result: Mapping[str, Any], out: str, task: Task, asked: Mapping[str, Any]
) -> Iterator[str]:
    """A line for each thing that the figures do not show by themselves."""
    failures, pairs = result["failures"], result["n"]
    too_long = result.get("n_too_long", 0)
    few = pairs - too_long < FEW_PAIRS
    if few:
        yield f"warning: {_too_few(pairs - too_long)} to say anything about a judge"
    if too_long:
        yield (
            f"warning: {too_long:,} of {pairs:,} pairs were not asked and are in no share, since "
            f"they are too long: {_first(out, 'too_long')}"
        )
    if failures.get("error"):
        yield (
            f"warning: {failures['error']:,} judgments could not be asked for and count as no "
            f"verdict: {_first(out, 'error')}"
        )
    for name, outcome in task.shares.items():
        if not few and result[name] is not None and not LOPSIDED <= result[name] <= 1 - LOPSIDED:
            yield (
                f"warning: {outcome} is {result[name]:.0%} of the verdicts, and right in half of "
                "the questions: the judge goes by the place of an answer"
            )
    verdict = task.wording.verdict
    for key, what in (
        ("unparsed", f"ended without a {verdict}, which counts as wrong"),
        ("forced", f"ended without a {verdict} and were made to choose"),
    ):
        if (result.get(key) or 0) > MANY:
            own = {kind: number for kind, number in failures.items() if kind not in NOT_ASKED}
            was_forced = {"--force-verdict": True} if key == "forced" else {}
            advice = for_no_verdict(task, {**asked, **was_forced}, own)
            yield (
                f"warning: {result[key]:.0%} of the judgments {what} ({_kinds(own)})"
                + (f"; try {advice}, with another --out" if advice else "")
            )


def _too_few(pairs: int) -> str:
    return "one pair is too little" if pairs == 1 else f"{pairs} pairs are too few"


def _kinds(failures: Mapping[str, int]) -> str:
    """Why there were no verdicts, in words: `12 no verdict, 3 cut off`."""
    most = sorted(failures.items(), key=lambda each: -each[1])
    return ", ".join(f"{number:,} {kind.replace('_', ' ')}" for kind, number in most)


def _first(out: str, failure: str) -> str:
    """What is said of the first judgment that failed so."""
    return next(each.text for each in judgments_in(out) if each.failure == failure)
