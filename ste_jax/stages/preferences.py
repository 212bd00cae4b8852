"""Which pairs of judgments does DPO learn from?

A pair is a correct and a failed judgment of one prompt. Some of all pairs are chosen by hash, with
equal numbers of each of the task's classes. The choice is made over all rows at once, and only ids
are kept in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ste_jax.config.schema import DpoKnobs
from ste_jax.records import NOT_ASKED, Judgment, Prompt, TrainingExample, content_id, hash_order
from ste_jax.stages.curate import end_of, leave_out, shortened
from ste_jax.stages.ends import Cut, ended, is_cut_off, never
from ste_jax.tasks import Task

VERSION = 2

Failure = Literal["incorrect", "unparsed", "error", "too_long"]


def failed_as(label: str, judgment: Judgment) -> Failure | None:
    """`incorrect`, `unparsed` or, where the prompt could not be asked, one of `NOT_ASKED`; None if
    its verdict is the prompt's `label`."""
    if judgment.verdict == label:
        return None
    if judgment.failure == "too_long":
        return "too_long"
    if judgment.failure == "error":
        return "error"
    return "unparsed" if judgment.verdict is None else "incorrect"


class Preferred(NamedTuple):
    """A correct judgment and a failed one of the same prompt, by id."""

    chosen: str
    rejected: str
    negative: str
    """`incorrect` or `unparsed`."""


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """Which pairs were chosen, and why the other prompts have none."""

    kept: dict[str, list[Preferred]]
    """Prompt id -> its pairs."""
    kept_by_class: dict[str, int]
    """How many pairs were chosen by the verdict that is right."""
    negatives: dict[str, int]
    """How many pairs were chosen by how the rejected judgment failed."""
    prompts_dropped: dict[str, int]
    """Reason -> how many prompts have no pair."""
    pairs_dropped: dict[str, int]
    """How many pairs the cap and the balance removed."""


@dataclass
class _Found:
    label: str
    correct: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Ids and kinds of failure."""
    lacking: str = "no_correct"
    """The reason where no judgment is correct: one of `NOT_ASKED` if no sample was answered."""
    answered: bool = False
    cut_off: bool = False
    """Whether a correct judgment was lost, since it was cut off."""


def prefer(
    task: Task,
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    knobs: DpoKnobs,
    *,
    balance: bool,
    more: Iterable[Judgment] = (),
    cut: Cut = never,
) -> Preferences:
    """Choose pairs for DPO.

    `prompts`, `judgments` and `more` are read as streams: only ids are kept in memory. Of `more`,
    which were drawn at a higher temperature, only those that failed are used. Rows of a prompt that
    could not be asked hold an error's text and are no judgments. `cut` is as in `ended`.
    """
    found = {prompt.id: _Found(prompt.label) for prompt in prompts}
    for judgment in judgments:
        _take(task, found[judgment.prompt_id], judgment, knobs, cut)
    for judgment in more:
        _take(task, found[judgment.prompt_id], judgment, knobs, None)
    pairs: dict[str, dict[str, tuple[str, Preferred]]] = {name: {} for name in task.decided}
    lost: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for id, of_prompt in sorted(found.items()):
        every = [
            Preferred(chosen, rejected, kind)
            for chosen in of_prompt.correct
            for rejected, kind in of_prompt.failed
        ]
        if not every:
            lacking = "cut_off" if of_prompt.cut_off else of_prompt.lacking
            lost["no_failed" if of_prompt.correct else lacking] += 1
        every.sort(key=lambda pair: hash_order(f"{pair.chosen}/{pair.rejected}", "preference"))
        dropped["pairs_per_prompt"] += len(every[knobs.pairs_per_prompt :])
        for pair in every[: knobs.pairs_per_prompt]:
            pairs[of_prompt.label][f"{pair.chosen}/{pair.rejected}"] = (id, pair)
    paired = len({id for of_class in pairs.values() for id, _ in of_class.values()})
    if balance and task.classes:
        fewest = min(len(pairs[name]) for name in task.classes)
        dropped["balance"] = leave_out(pairs, dict.fromkeys(task.classes, fewest), "balance")
    kept: dict[str, list[Preferred]] = {}
    negatives: Counter[str] = Counter(dict.fromkeys(("incorrect", "unparsed"), 0))
    for of_class in pairs.values():
        for prompt_id, pair in of_class.values():
            kept.setdefault(prompt_id, []).append(pair)
            negatives[pair.negative] += 1
    lost["balance"] = paired - len(kept)
    return Preferences(
        kept=kept,
        kept_by_class={name: len(of_class) for name, of_class in pairs.items()},
        negatives=dict(negatives),
        prompts_dropped={reason: count for reason, count in sorted(lost.items()) if count},
        pairs_dropped={reason: count for reason, count in sorted(dropped.items()) if count},
    )


def _take(task: Task, found: _Found, judgment: Judgment, knobs: DpoKnobs, cut: Cut | None) -> None:
    """Notes a judgment for pairing, as correct or as failed; a correct one only with a `cut`."""
    kind = failed_as(found.label, judgment)
    found.answered |= kind not in NOT_ASKED
    found.lacking = "no_correct" if found.answered else str(kind)
    if kind in knobs.negatives:
        found.failed.append((judgment.id, kind))
    elif kind is None and cut is not None:
        if ended(judgment, task, cut) is None:
            found.cut_off = True
        else:
            found.correct.append(judgment.id)


def preference_examples(
    task: Task,
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    kept: Mapping[str, list[Preferred]],
    cut: Cut = never,
) -> list[TrainingExample]:
    """The preference rows of one shard. A failed judgment that was cut off stays cut off."""
    by_id = {judgment.id: judgment for judgment in judgments}
    made = []
    for prompt in prompts:
        for pair in kept.get(prompt.id, ()):
            chosen, rejected = by_id[pair.chosen], by_id[pair.rejected]
            end = end_of(chosen, task, cut)
            unlike: list[Any] = [*shortened(chosen, end)]
            cut_off = is_cut_off(rejected)
            if rejected.finish_reason == "length" and not cut_off:
                unlike.append("ended")
            made.append(
                TrainingExample(
                    id=content_id("preference", prompt.id, chosen.id, rejected.id, *unlike),
                    prompt_id=prompt.id,
                    judgment_id=chosen.id,
                    label=prompt.label,
                    messages=prompt.messages,
                    completion=end.text,
                    completion_ids=end.token_ids,
                    forced=chosen.forced,
                    rejected=rejected.text,
                    rejected_ids=rejected.token_ids,
                    rejected_judgment_id=rejected.id,
                    rejected_cut_off=cut_off,
                    negative=pair.negative,
                )
            )
    return made
