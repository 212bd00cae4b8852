"""Which judgments are trained on?

One correct judgment per prompt, that of the lowest sample index; optionally only where enough of
the samples agree; equal numbers of A and B; optionally no more than so many. As a control they can
be kept whatever their verdict. A judgment that was cut off by length is learnt up to the end of its
verdict's line, or not at all (`ste_jax.stages.ends`).

For DPO, pairs of a correct and a failed judgment of one prompt: of all that there are some by hash,
with equal numbers of A and B. Global, in memory bounded by ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ste_jax.config.schema import CurateKnobs, DpoKnobs
from ste_jax.records import NOT_ASKED, Judgment, Prompt, TrainingExample, content_id, hash_order
from ste_jax.stages.ends import Cut, End, ended, is_cut_off, never

VERSION = 3
PREFER_VERSION = 2


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
    why_not: str = "no_verdict"
    """Why there is no verdict: one of `NOT_ASKED` where no sample was answered."""
    drawn: int = 0
    """How many samples were answered."""
    parsed: int = 0
    correct: int = 0
    cut_off: bool = False
    """Whether a verdict that would do was lost with the judgment's end."""
    best: tuple[int, str, str] | None = None
    """Of the judgment that would be kept: sample index, id, verdict."""


def curate(
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    knobs: CurateKnobs,
    cut: Cut = never,
) -> Curation:
    """Choose. `prompts` and `judgments` are streams; only ids and counts are kept. `cut` as in
    `ended`."""
    tallies = {prompt.id: _Tally(prompt.label) for prompt in prompts}
    for judgment in judgments:
        tally = tallies[judgment.prompt_id]
        asked = judgment.failure not in NOT_ASKED
        tally.drawn += asked
        tally.why_not = "no_verdict" if tally.drawn else str(judgment.failure)
        tally.parsed += judgment.verdict is not None
        tally.correct += judgment.verdict == tally.label
        wanted = ("A", "B") if knobs.verdicts == "any" else (tally.label,)
        if judgment.verdict is not None and judgment.verdict in wanted:
            if ended(judgment, cut) is None:
                tally.cut_off = True
                continue
            candidate = (judgment.sample, judgment.id, judgment.verdict)
            tally.best = candidate if tally.best is None else min(tally.best, candidate)
    dropped: Counter[str] = Counter()
    kept: dict[str, dict[str, str]] = {"A": {}, "B": {}}
    for id, tally in sorted(tallies.items()):
        if tally.best is None:
            dropped[_why_none(tally, knobs)] += 1
        elif tally.correct / tally.drawn < knobs.min_agreement:
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


def _why_none(tally: _Tally, knobs: CurateKnobs) -> str:
    if tally.cut_off:
        return "cut_off"
    return "no_correct" if tally.parsed and knobs.verdicts == "correct" else tally.why_not


def _cut(kept: dict[str, dict[str, Any]], most: dict[str, int], purpose: str) -> int:
    """Leave at most so many of each letter, by hash; how many went."""
    gone = 0
    for letter, of_letter in kept.items():
        for id in sorted(of_letter, key=lambda id: hash_order(id, purpose))[most[letter] :]:
            del of_letter[id]
            gone += 1
    return gone


def training_examples(
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    is_kept: Callable[[Judgment], bool],
    cut: Cut = never,
) -> list[TrainingExample]:
    """The training rows of one shard."""
    by_id = {prompt.id: prompt for prompt in prompts}
    return [
        TrainingExample(
            id=content_id("training", judgment.prompt_id, judgment.id, *_told(judgment, end)),
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
        for end in [_ended(judgment, cut)]
    ]


def _ended(judgment: Judgment, cut: Cut) -> End:
    """How a judgment that was chosen ends."""
    found = ended(judgment, cut)
    assert found is not None, f"{judgment.id} was chosen and has no end"
    return found


def _told(judgment: Judgment, end: End) -> list[int]:
    """For the id of a row, where it holds less than the whole judgment."""
    return [len(end.text)] if end.text != judgment.text else []


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
    """What was chosen (prompt id -> pairs), with how many pairs by the letter that is right and by
    how the other judgment failed; and why the rest of the prompts have none, and how many pairs
    fell to the cap and to the balance."""

    kept: dict[str, list[Preferred]]
    kept_letters: dict[str, int]
    negatives: dict[str, int]
    prompts_dropped: dict[str, int]
    pairs_dropped: dict[str, int]


@dataclass
class _Found:
    label: str
    correct: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Ids and kinds of failure."""
    lacking: str = "no_correct"
    """What is said where none is correct: one of `NOT_ASKED` where no sample was answered."""
    answered: bool = False
    cut_off: bool = False
    """Whether a correct one was lost with its end."""


def prefer(
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    knobs: DpoKnobs,
    *,
    balance: bool,
    more: Iterable[Judgment] = (),
    cut: Cut = never,
) -> Preferences:
    """Choose pairs for DPO. `prompts`, `judgments` and `more` are streams; only ids are kept. `cut`
    as in `ended`.

    Of `more`, drawn at a higher temperature, only those that failed are used. A prompt that could
    not be asked has no judgments: what its rows say is an error's text.
    """
    found = {prompt.id: _Found(prompt.label) for prompt in prompts}
    for judgment in judgments:
        _take(found[judgment.prompt_id], judgment, knobs, cut)
    for judgment in more:
        _take(found[judgment.prompt_id], judgment, knobs, None)
    pairs: dict[str, dict[str, tuple[str, Preferred]]] = {"A": {}, "B": {}}
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
    paired = len({id for of_letter in pairs.values() for id, _ in of_letter.values()})
    if balance:
        fewest = min(map(len, pairs.values()))
        dropped["balance"] = _cut(pairs, dict.fromkeys(pairs, fewest), "balance")
    kept: dict[str, list[Preferred]] = {}
    negatives: Counter[str] = Counter(dict.fromkeys(("incorrect", "unparsed"), 0))
    for of_letter in pairs.values():
        for prompt_id, pair in of_letter.values():
            kept.setdefault(prompt_id, []).append(pair)
            negatives[pair.negative] += 1
    lost["balance"] = paired - len(kept)
    return Preferences(
        kept=kept,
        kept_letters={letter: len(of_letter) for letter, of_letter in pairs.items()},
        negatives=dict(negatives),
        prompts_dropped={reason: count for reason, count in sorted(lost.items()) if count},
        pairs_dropped={reason: count for reason, count in sorted(dropped.items()) if count},
    )


def _take(found: _Found, judgment: Judgment, knobs: DpoKnobs, cut: Cut | None) -> None:
    """Puts a judgment where it can be paired; a correct one only with a `cut`."""
    kind = failed_as(found.label, judgment)
    found.answered |= kind not in NOT_ASKED
    found.lacking = "no_correct" if found.answered else str(kind)
    if kind in knobs.negatives:
        found.failed.append((judgment.id, kind))
    elif kind is None and cut is not None:
        if ended(judgment, cut) is None:
            found.cut_off = True
        else:
            found.correct.append(judgment.id)


def preference_examples(
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    kept: Mapping[str, list[Preferred]],
    cut: Cut = never,
) -> list[TrainingExample]:
    """The preference rows of one shard. A failed judgment that was cut off stays so."""
    by_id = {judgment.id: judgment for judgment in judgments}
    made = []
    for prompt in prompts:
        for pair in kept.get(prompt.id, ()):
            chosen, rejected = by_id[pair.chosen], by_id[pair.rejected]
            end = _ended(chosen, cut)
            unlike: list[Any] = [*_told(chosen, end)]
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
