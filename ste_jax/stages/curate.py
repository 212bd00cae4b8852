"""Which judgments are trained on?

One judgment of each prompt of a question is kept: that of the lowest sample index at which the
outcome is right. Knobs can ask that enough of the samples agree, balance the task's classes, and
limit how many are kept. As a control, judgments can be kept whatever their outcome. A judgment that
was cut off by length is learnt up to the end of its verdict's line, or not at all
(`ste_jax.stages.ends`).

The choice is made over all rows at once, and only ids are kept in memory."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ste_jax.config.schema import CurateKnobs
from ste_jax.records import NOT_ASKED, Judgment, Prompt, TrainingExample, content_id, hash_order
from ste_jax.stages.ends import Cut, End, ended, never
from ste_jax.tasks import Question, Task

VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Curation:
    """Which judgments were kept, and why the other questions have none."""

    kept: dict[str, str]
    """Prompt id -> judgment id."""
    kept_by_class: dict[str, int]
    """How many questions were kept of each of the task's outcomes."""
    dropped: dict[str, int]
    """Reason -> how many questions have none."""


@dataclass
class _Tally:
    question: Question
    why_not: str = "no_verdict"
    """The reason where there is no outcome: one of `NOT_ASKED` if no sample was answered."""
    drawn: int = 0
    """How many samples were answered."""
    parsed: int = 0
    correct: int = 0
    cut_off: bool = False
    """Whether an outcome that would be kept was lost, since a judgment was cut off."""
    best: tuple[int, tuple[str, ...], str] | None = None
    """Of the judgments that would be kept: their sample index, their ids in the order of the
    question's prompts, and their outcome."""
    waiting: dict[int, dict[str, Judgment]] = field(default_factory=dict)
    """Sample index -> prompt id -> a judgment that waits for the others of its question."""

    def complete(self, judgment: Judgment) -> tuple[Judgment, ...]:
        """The judgments of one sample index in the order of the prompts, once there are all; before
        that, none."""
        here = self.waiting.setdefault(judgment.sample, {})
        here[judgment.prompt_id] = judgment
        if len(here) < len(self.question.prompts):
            return ()
        del self.waiting[judgment.sample]
        return tuple(here[prompt.id] for prompt in self.question.prompts)


def curate(
    task: Task,
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    knobs: CurateKnobs,
    cut: Cut = never,
) -> Curation:
    """Choose the judgments to train on.

    `prompts` and `judgments` are read as streams: only ids and counts are kept in memory, and
    judgments that wait for another of their question. `cut` is as in `ended`."""
    tallies = {
        each.id: _Tally(each) for each in task.questions(_without_text(row) for row in prompts)
    }
    of = {prompt.id: each for each in tallies.values() for prompt in each.question.prompts}
    for judgment in judgments:
        tally = of[judgment.prompt_id]
        drawn = tally.complete(judgment)
        if drawn:
            _count(task, tally, drawn, knobs, cut)
    dropped: Counter[str] = Counter()
    kept: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in task.decided}
    for id, tally in sorted(tallies.items()):
        if tally.best is None:
            dropped[_why_none(tally, knobs)] += 1
        elif tally.correct / tally.drawn < knobs.min_agreement:
            dropped["low_agreement"] += 1
        else:
            kept[tally.best[2]][id] = tally.best[1]
    if knobs.balance and task.classes:
        fewest = min(len(kept[name]) for name in task.classes)
        dropped["balance"] = leave_out(kept, dict.fromkeys(task.classes, fewest), "balance")
    if knobs.limit:
        total = max(knobs.limit, sum(map(len, kept.values())))
        most = {name: knobs.limit * len(kept[name]) // total for name in kept}
        dropped["limit"] = leave_out(kept, most, "limit")
    return Curation(
        kept={
            prompt.id: judgment_id
            for of_class in kept.values()
            for id, ids in of_class.items()
            for prompt, judgment_id in zip(tallies[id].question.prompts, ids, strict=True)
        },
        kept_by_class={name: len(of_class) for name, of_class in kept.items()},
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
    )


def can_train(task: Task, kept: Mapping[str, int]) -> bool:
    """Whether something was kept to train on; of every class, if the task balances classes."""
    return sum(kept.values()) > 0 and all(kept[name] for name in task.classes)


def _without_text(prompt: Prompt) -> Prompt:
    return dataclasses.replace(prompt, messages=())


def _count(
    task: Task, tally: _Tally, drawn: tuple[Judgment, ...], knobs: CurateKnobs, cut: Cut
) -> None:
    """Counts the judgments of one sample index, and notes them if they are the first that would be
    kept."""
    unasked = [each.failure for each in drawn if each.failure in NOT_ASKED]
    tally.drawn += not unasked
    tally.why_not = "no_verdict" if tally.drawn else str(unasked[0])
    outcome, answer = task.outcome_of(tally.question, drawn), task.answer(tally.question)
    tally.parsed += outcome is not None
    tally.correct += outcome == answer
    wanted = task.decided if knobs.verdicts == "any" else (answer,)
    if outcome is None or outcome not in wanted:
        return
    if any(ended(each, task, cut) is None for each in drawn):
        tally.cut_off = True
        return
    candidate = (drawn[0].sample, tuple(each.id for each in drawn), outcome)
    tally.best = candidate if tally.best is None else min(tally.best, candidate)


def _why_none(tally: _Tally, knobs: CurateKnobs) -> str:
    if tally.cut_off:
        return "cut_off"
    return "no_correct" if tally.parsed and knobs.verdicts == "correct" else tally.why_not


def leave_out(kept: dict[str, dict[str, Any]], most: dict[str, int], purpose: str) -> int:
    """Remove, by hash, what is beyond `most` of each class in `kept`; returns how many that were.
    `purpose` makes the hashes of one call unlike those of another."""
    gone = 0
    for name, count in most.items():
        of_class = kept[name]
        for id in sorted(of_class, key=lambda id: hash_order(id, purpose))[count:]:
            del of_class[id]
            gone += 1
    return gone


def training_examples(
    task: Task,
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    is_kept: Callable[[Judgment], bool],
    cut: Cut = never,
) -> list[TrainingExample]:
    """The training rows of one shard: the judgments for which `is_kept` is true."""
    by_id = {prompt.id: prompt for prompt in prompts}
    return [
        TrainingExample(
            id=content_id("training", judgment.prompt_id, judgment.id, *shortened(judgment, end)),
            prompt_id=judgment.prompt_id,
            judgment_id=judgment.id,
            label=judgment.verdict or "",
            messages=by_id[judgment.prompt_id].messages,
            completion=end.text,
            completion_ids=end.token_ids,
            forced=judgment.forced,
        )
        for judgment in judgments
        if is_kept(judgment)
        for end in [end_of(judgment, task, cut)]
    ]


def end_of(judgment: Judgment, task: Task, cut: Cut) -> End:
    """What is learnt of a judgment that was chosen, which always has an end."""
    found = ended(judgment, task, cut)
    assert found is not None, f"{judgment.id} was chosen and has no end"
    return found


def shortened(judgment: Judgment, end: End) -> list[int]:
    """What goes into a training row's id where it holds less than the whole judgment."""
    return [len(end.text)] if end.text != judgment.text else []
