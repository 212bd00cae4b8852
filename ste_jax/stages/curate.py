"""Which judgments are trained on?

One correct judgment per prompt, that of the lowest sample index; optionally only where enough of
the samples agree; equal numbers of A and B. Global, in memory bounded by ids."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ste_jax.config import CurateKnobs
from ste_jax.records import Judgment, Prompt, TrainingExample, content_id, hash_order

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Curation:
    """What was kept (prompt id -> judgment id), and why the rest of the prompts were not."""

    kept: dict[str, str]
    kept_letters: dict[str, int]
    dropped: dict[str, int]


@dataclass
class _Tally:
    label: str
    drawn: int = 0
    parsed: int = 0
    correct: int = 0
    best: tuple[int, str] | None = field(default=None)


def curate(
    prompts: Iterable[Prompt], judgments: Iterable[Judgment], knobs: CurateKnobs
) -> Curation:
    """Choose. `prompts` and `judgments` are streams; only ids and counts are kept."""
    tallies = {prompt.id: _Tally(prompt.label) for prompt in prompts}
    for judgment in judgments:
        tally = tallies[judgment.prompt_id]
        tally.drawn += 1
        tally.parsed += judgment.verdict is not None
        if judgment.verdict == tally.label:
            tally.correct += 1
            candidate = (judgment.sample, judgment.id)
            tally.best = candidate if tally.best is None else min(tally.best, candidate)
    dropped: Counter[str] = Counter()
    by_letter: dict[str, list[str]] = defaultdict(list)
    for id, tally in tallies.items():
        reason = _reason(tally, knobs)
        if reason:
            dropped[reason] += 1
        else:
            by_letter[tally.label].append(id)
    kept_ids = _balanced(by_letter, knobs)
    surplus = sum(map(len, by_letter.values())) - len(kept_ids)
    if surplus:
        dropped["balance"] = surplus
    kept = {id: best[1] for id in sorted(kept_ids) if (best := tallies[id].best) is not None}
    letters = Counter(tallies[id].label for id in kept)
    return Curation(
        kept=kept,
        kept_letters={letter: letters[letter] for letter in ("A", "B")},
        dropped=dict(sorted(dropped.items())),
    )


def _reason(tally: _Tally, knobs: CurateKnobs) -> str:
    if not tally.correct:
        return "no_correct" if tally.parsed else "no_verdict"
    if tally.correct / tally.parsed < knobs.min_agreement:
        return "low_agreement"
    return ""


def _balanced(by_letter: dict[str, list[str]], knobs: CurateKnobs) -> list[str]:
    """As many of each letter as the rarer has; which of the other stay is by hash."""
    if not knobs.balance:
        return [id for ids in by_letter.values() for id in ids]
    fewest = min(len(by_letter["A"]), len(by_letter["B"]))
    return [
        id
        for ids in by_letter.values()
        for id in sorted(ids, key=lambda id: hash_order(id, "balance"))[:fewest]
    ]


def training_examples(
    prompts: Iterable[Prompt], judgments: Iterable[Judgment], is_kept: Callable[[Judgment], bool]
) -> list[TrainingExample]:
    """The training rows of one shard."""
    by_id = {prompt.id: prompt for prompt in prompts}
    return [
        TrainingExample(
            id=content_id("training", judgment.prompt_id, judgment.id),
            prompt_id=judgment.prompt_id,
            judgment_id=judgment.id,
            label=by_id[judgment.prompt_id].label,
            messages=by_id[judgment.prompt_id].messages,
            completion=judgment.text,
            completion_ids=judgment.token_ids,
            forced=judgment.forced,
        )
        for judgment in judgments
        if is_kept(judgment)
    ]
