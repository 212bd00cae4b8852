"""How is a judge measured on some pairs? There is this one way.

A run's held-out pairs and labelled sets come here, and so do `ste evaluate` and `ste score`.
Nothing that is learnt comes from here: alone in the package, this may ask which steps of a judgment
are right (`ste_jax.evaluation.traces`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ste_jax.evaluation import metrics
from ste_jax.evaluation.traces import CHECKERS
from ste_jax.records import NOT_ASKED, Judgment, Pair, Prompt
from ste_jax.run.layout import JudgedDir
from ste_jax.system.errors import RequestError
from ste_jax.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured beside how often a judge is right, and how."""

    bootstrap: int = 2000
    """Resamples for the 95% intervals (by pair)."""
    by: tuple[str, ...] = ()
    """Columns of the pairs' file: accuracy is also measured by their values."""
    traces: str = ""
    """The checker that recomputes every step of a judgment; empty: there is none."""


def check_pairs(task: Task, pairs: Iterable[Pair], measures: Measures, where: str) -> None:
    """Checks, before a judge is asked, that all measures can be taken on the pairs.

    Raises:
      RequestError: a pair lacks a column, or the steps of its judgments are to be checked and
        nobody can; names `where` it stands.
    """
    if measures.traces and measures.traces not in CHECKERS:
        known = ", ".join(CHECKERS)
        raise RequestError(
            f"{where}: nobody is called {measures.traces!r} who checks traces; known: {known}"
        )
    checked = CHECKERS[measures.traces].task if measures.traces else task.name
    if checked != task.name:
        raise RequestError(
            f"{where}: traces: {measures.traces} checks judgments of judge.task={checked}, not of "
            f"{task.name}: leave traces out"
        )
    for pair in pairs if measures.by or measures.traces else ():
        columns = json.loads(pair.extra or "{}")
        missing = [name for name in measures.by if name not in columns]
        if missing:
            raise RequestError(
                f"{where}: a row is without the column {missing[0]!r}, by which accuracy is to be "
                "shown"
            )
        if measures.traces and not CHECKERS[measures.traces].knows(pair):
            raise RequestError(
                f"{where}: traces: {measures.traces} is asked for, and "
                f"{pair.messages[-1]['content'][:80]!r} is no task whose steps that can check; "
                "leave traces out"
            )


def measure_judged(
    task: Task, judged: JudgedDir, pairs: Iterable[Pair], measures: Measures
) -> dict[str, Any]:
    """Measure one judge on its judgments of `pairs`.

    Returns:
      As `metrics.measure`; with `measures.by` by column what `metrics.measure_groups` gives under
      `by`, with `measures.traces` what each step means under `meanings`.

    Raises:
      WorkError, RequestError: as `metrics.measure`.
    """
    prompts, judgments = list(judged.prompts.rows()), list(judged.judgments.rows())
    kept = {pair.id: pair for pair in pairs} if measures.by or measures.traces else {}
    steps = _steps(measures.traces, prompts, judgments, kept) if measures.traces else None
    bootstrap = measures.bootstrap
    found = metrics.measure(task, prompts, judgments, bootstrap=bootstrap, steps=steps)
    if measures.traces:
        found["meanings"] = dict(CHECKERS[measures.traces].meanings)
    if measures.by:
        found["by"] = {
            column: metrics.measure_groups(
                task, prompts, judgments, _groups(kept, column), bootstrap=bootstrap
            )
            for column in measures.by
        }
    return found


def why_unasked(judged: JudgedDir) -> str:
    """Why no prompt of a judge could be asked, in the words of its first judgment; empty if one
    could be, or if there is no judgment."""
    first = ""
    for judgment in judged.judgments.rows():
        if judgment.failure not in NOT_ASKED:
            return ""
        first = first or judgment.text
    return first


def _steps(
    traces: str, prompts: Sequence[Prompt], judgments: Sequence[Judgment], pairs: Mapping[str, Pair]
) -> dict[str, dict[str, bool]]:
    """Which steps of the single judgment of each prompt are right."""
    asked = {prompt.id: prompt for prompt in prompts}
    return {
        said.prompt_id: CHECKERS[traces].steps(
            said.text, pairs[asked[said.prompt_id].pair_id], asked[said.prompt_id]
        )
        for said in judgments
        if said.sample == 0
    }


def _groups(pairs: Mapping[str, Pair], column: str) -> dict[str, str]:
    """Pair id -> its group by a column. Halves of surrogate pairs, which JSON can escape, are
    replaced."""
    return {
        id: str(json.loads(pair.extra)[column]).encode("utf-8", "replace").decode()
        for id, pair in pairs.items()
    }
