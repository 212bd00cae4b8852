"""Which pairs are worth reading, and what did each judge say of them?

The run decides the choice: pairs are drawn by id (a hash, so a fair draw) among those on which the
last judge does better than the first, worse, and the same. Only the chosen pairs' texts are kept in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from ste_jax.records import Pair
from ste_jax.reporting.columns import read_columns, read_prompts
from ste_jax.reporting.funnel import task_of
from ste_jax.run.layout import JudgedDir, RunDir
from ste_jax.run.tables import Table
from ste_jax.tasks import Question, Task


@dataclass(frozen=True)
class Said:
    """A judge's first judgment of a prompt: its text and its verdict."""

    text: str
    verdict: str | None
    failure: str | None
    forced: bool


@dataclass(frozen=True)
class View:
    """A question about a pair, and what the judge of each iteration said on each of its prompts."""

    question: Question
    said: dict[int, list[Said]]


@dataclass(frozen=True)
class Example:
    """A pair with its judgments, for a person to read."""

    pair: Pair
    first_right: int
    """How many of the pair's questions the first judge got right."""
    last_right: int
    """How many of the pair's questions the last judge got right."""
    views: list[View]


def heldout_examples(run: RunDir) -> list[Example]:
    """A handful of held-out pairs: 2 that the last judge judges better, 2 worse, filled up to 6."""
    judged = {each.index: each.heldout for each in run.iterations()}
    return _examples(task_of(run), judged, run.pairs, better=2, worse=2, shown=6)


def labelled_examples(run: RunDir, name: str) -> list[Example]:
    """Pairs of a labelled set: 5 that the last judge judges better than the first, 2 worse."""
    judged = {each.index: each.labelled(name) for each in run.iterations()}
    return _examples(task_of(run), judged, run.labelled(name), better=5, worse=2, shown=0)


def _examples(
    task: Task,
    by_judge: dict[int, JudgedDir],
    pairs: Table[Pair],
    *,
    better: int,
    worse: int,
    shown: int,
) -> list[Example]:
    judged = {index: each for index, each in by_judge.items() if each.judgments.complete()}
    if not judged:
        return []
    first = questions_right(task, judged[min(judged)])
    last = questions_right(task, judged[max(judged)])
    both = sorted(first.keys() & last.keys())
    chosen = [id for id in both if last[id] > first[id]][:better]
    chosen += [id for id in both if last[id] < first[id]][:worse]
    chosen += [id for id in both if last[id] == first[id]][: max(0, shown - len(chosen))]
    found = {pair.id: pair for pair in pairs.rows() if pair.id in set(chosen)}
    views = _views(task, judged, set(chosen))
    return [Example(found[id], first[id], last[id], views[id]) for id in chosen if id in found]


def questions_right(task: Task, judged: JudgedDir) -> dict[str, int]:
    """Pair id -> on how many of its questions the single judgment is right."""
    columns = ("prompt_id", "sample", "verdict")
    verdicts = {
        id: verdict
        for id, sample, verdict in read_columns(judged.judgments, *columns)
        if not sample
    }
    right: dict[str, int] = {}
    for question in task.questions(read_prompts(judged.prompts)):
        printed = [verdicts.get(prompt.id) for prompt in question.prompts]
        right.setdefault(question.pair_id, 0)
        right[question.pair_id] += task.outcome(question, printed) == task.answer(question)
    return right


def _views(task: Task, judged: dict[int, JudgedDir], chosen: set[str]) -> dict[str, list[View]]:
    asked = [row for row in judged[max(judged)].prompts.rows() if row.pair_id in chosen]
    said: dict[str, dict[int, Said]] = {prompt.id: {} for prompt in asked}
    columns = ("prompt_id", "sample", "text", "verdict", "failure", "forced")
    for index, place in judged.items():
        for prompt_id, sample, *values in read_columns(place.judgments, *columns):
            if sample == 0 and prompt_id in said:
                said[prompt_id][index] = Said(*values)
    views: dict[str, list[View]] = {id: [] for id in chosen}
    questions = task.questions(asked)
    for each in sorted(questions, key=lambda row: task.orders.index(row.prompts[0].order)):
        of_prompts = [said[prompt.id] for prompt in each.prompts]
        judges = [index for index in judged if all(index in of for of in of_prompts)]
        spoken = {index: [of[index] for of in of_prompts] for index in judges}
        views[each.pair_id].append(View(each, spoken))
    return views
