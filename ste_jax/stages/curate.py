"""Which judgments are trained on?

One correct judgment per prompt, that of the lowest sample index; optionally only where enough of
the samples agree; equal numbers of A and B; optionally no more than so many. As a control they can
be kept whatever their verdict. Global, in memory bounded by ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ste_jax.config import CurateKnobs
from ste_jax.records import Judgment, Prompt, TrainingExample, content_id, hash_order

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Curation:
    """What was kept (prompt id -> judgment id), with how many verdicts of each letter, and why the
    rest of the prompts were not."""

    kept: dict[str, str]
    kept_letters: dict[str, int]
    dropped: dict[str, int]


@dataclass
class _Tally:
    label: str
    parsed: int = 0
    correct: int = 0
    best: tuple[int, str, str] | None = None
    """Of the judgment that would be kept: sample index, id, verdict."""


def curate(
    prompts: Iterable[Prompt], judgments: Iterable[Judgment], knobs: CurateKnobs
) -> Curation:
    """Choose. `prompts` and `judgments` are streams; only ids and counts are kept."""
    tallies = {prompt.id: _Tally(prompt.label) for prompt in prompts}
    for judgment in judgments:
        tally = tallies[judgment.prompt_id]
        tally.parsed += judgment.verdict is not None
        tally.correct += judgment.verdict == tally.label
        wanted = ("A", "B") if knobs.verdicts == "any" else (tally.label,)
        if judgment.verdict is not None and judgment.verdict in wanted:
            candidate = (judgment.sample, judgment.id, judgment.verdict)
            tally.best = candidate if tally.best is None else min(tally.best, candidate)
    dropped: Counter[str] = Counter()
    kept: dict[str, dict[str, str]] = {"A": {}, "B": {}}
    for id, tally in sorted(tallies.items()):
        if tally.best is None:
            wrong = tally.parsed and knobs.verdicts == "correct"
            dropped["no_correct" if wrong else "no_verdict"] += 1
        elif tally.correct / tally.parsed < knobs.min_agreement:
            dropped["low_agreement"] += 1
        else:
            kept[tally.best[2]][id] = tally.best[1]
    if knobs.balance:
        fewest = min(map(len, kept.values()))
        dropped["balance"] = _cut(kept, dict.fromkeys(kept, fewest), "balance")
    if knobs.limit:
        total = max(knobs.limit, sum(map(len, kept.values())))
        most = {letter: knobs.limit * len(kept[letter]) // total for letter in kept}
        dropped["limit"] = _cut(kept, most, "limit")
    return Curation(
        kept=kept["A"] | kept["B"],
        kept_letters={letter: len(of_letter) for letter, of_letter in kept.items()},
        dropped={reason: count for reason, count in sorted(dropped.items()) if count},
    )


def _cut(kept: dict[str, dict[str, str]], most: dict[str, int], purpose: str) -> int:
    """Leave at most so many of each letter, by hash; how many went."""
    gone = 0
    for letter, of_letter in kept.items():
        for id in sorted(of_letter, key=lambda id: hash_order(id, purpose))[most[letter] :]:
            del of_letter[id]
            gone += 1
    return gone


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
            label=judgment.verdict or "",
            messages=by_id[judgment.prompt_id].messages,
            completion=judgment.text,
            completion_ids=judgment.token_ids,
            forced=judgment.forced,
        )
        for judgment in judgments
        if is_kept(judgment)
    ]
