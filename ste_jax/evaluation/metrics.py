"""How good is a judge, and do two judges differ?

Everything is counted over pairs that were judged in both orders. A verdict is right if it is the
prompt's label; a tie and a missing verdict are wrong, and both have a column of their own, so that
nothing hides in the accuracy. A prompt that the judge has no room for (`too_long`) was not judged:
it is in no share, and a pair that has one in none over pairs; they are counted. Intervals are 95%
percentile bootstrap (Efron 1979) over *pairs*: the two orders of a pair are not independent, and
resampling prompts would make intervals too narrow.

Shapes: `N` pairs, 2 orders ("ab", "ba"), `V` samples (votes) per prompt, `M` measures.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ste_jax.errors import RequestError, WorkError
from ste_jax.records import ORDERS, Judgment, Prompt

_NONE, _A, _B, _TIE = range(4)
_CODES: Mapping[str | None, int] = {None: _NONE, "A": _A, "B": _B, "tie": _TIE}
_COUNTS_AT_ONCE = 2**22

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Ratio = tuple[Ints, Ints]
"""A measure as counts per pair, [N] over [N]: its value is the ratio of the sums."""


def measure(
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    *,
    bootstrap: int,
    seed: int = 0,
    steps: Mapping[str, Mapping[str, bool]] | None = None,
) -> dict[str, Any]:
    """Measure one judge on prompts that show each pair in both orders.

    The *single* verdict of a prompt is that of sample 0; `majority_*` take the strict plurality of
    the printed verdicts of all V samples (no strict plurality, or one of ties, is wrong). Verdicts
    count as printed, by force or not; what the judge said by itself has `failure` null.

    `steps` tells, by prompt, which steps of the single judgment are right, where that can be
    recomputed.

    Returns, ready for JSON, every share with its interval under `<name>_ci95` as [low, high]:
      n: pairs; n_prompts: twice that; votes: V.
      n_too_long, n_prompts_too_long: of those, with an order that the judge has no room for, and
        those prompts; every share below is of the others, and null where there are none.
      accuracy: single verdict right, over prompts (the mean of both orders).
      consistent_accuracy: single verdict right in both orders, over pairs (chance is a quarter).
      share_a: A among the single verdicts that are A or B (half, without position bias).
      unparsed, ties, forced: single verdict missing, a tie, drawn by force, over prompts.
      parsed_unforced: the judge gave a verdict by itself, over prompts.
      accuracy_unforced: right among those; null if there are none.
      majority_accuracy, majority_consistent_accuracy: as above for the vote.
      majority_undecided: prompts without a strict plurality for A or B.
      sound, sound_of_right: with `steps` only; judgments right in every step, over prompts, and
        over those with a right verdict; step_NAME: right in this step, over prompts.
      failures: why the judge gave no verdict by itself, {kind: prompts}, over the single verdicts
        and those too long; they and the ones counted in parsed_unforced add up to n_prompts.

    Raises:
      WorkError: no pairs, a pair in one order only, a judgment missing, doubled, of another prompt
        or of another judge; names it.
      RequestError: `bootstrap` is below 1.
    """
    layout = _lay_out(prompts)
    votes = _collect(layout, judgments)
    ratios = _ratios(layout, votes)
    if steps is not None:
        ratios |= _soundness(layout, votes, steps)
    result: dict[str, Any] = {
        **_counts(layout, votes),
        "n_prompts": 2 * len(layout.pair_ids),
        "n_prompts_too_long": int((~votes.asked).sum()),
        "votes": votes.verdicts.shape[2],
    }
    result.update(with_intervals(ratios, bootstrap, seed))
    result["failures"] = dict(sorted(votes.failures.items()))
    return result


def measure_groups(
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    groups: Mapping[str, str],
    *,
    bootstrap: int,
) -> dict[str, dict[str, Any]]:
    """Accuracy of one judge on each group of pairs; `groups` maps a pair's id to its group.

    Returns:
      By group, in order: n, n_too_long, `accuracy` and `consistent_accuracy` with intervals, as
      `measure`.
    """
    prompts_of: dict[str, list[Prompt]] = {}
    group_of: dict[str, str] = {}
    for prompt in prompts:
        group_of[prompt.id] = groups[prompt.pair_id]
        prompts_of.setdefault(groups[prompt.pair_id], []).append(prompt)
    judgments_of: dict[str, list[Judgment]] = {group: [] for group in prompts_of}
    for judgment in judgments:
        judgments_of[group_of[judgment.prompt_id]].append(judgment)
    found = {}
    for group in sorted(prompts_of):
        layout = _lay_out(prompts_of[group])
        votes = _collect(layout, judgments_of[group])
        ratios = _ratios(layout, votes)
        kept = {name: ratios[name] for name in ("accuracy", "consistent_accuracy")}
        found[group] = {**_counts(layout, votes), **with_intervals(kept, bootstrap, seed=0)}
    return found


def _counts(layout: _Layout, votes: _Votes) -> dict[str, int]:
    return {"n": len(layout.pair_ids), "n_too_long": int((~votes.asked).any(1).sum())}


def compare(
    prompts: Iterable[Prompt],
    judgments_a: Iterable[Judgment],
    judgments_b: Iterable[Judgment],
    *,
    bootstrap: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Difference, judge b less judge a, on the same prompts, but for those that one of them has no
    room for: both are resampled by the same pairs.

    Returns:
      n, n_too_long, and `accuracy`, `consistent_accuracy`, `majority_accuracy`,
      `majority_consistent_accuracy` as differences in -1..1, each with `<name>_ci95`; null where
      nothing was asked of both. An interval without 0 says that they differ.

    Raises:
      WorkError, RequestError: as `measure`.
    """
    layout = _lay_out(prompts)
    votes_a, votes_b = _collect(layout, judgments_a), _collect(layout, judgments_b)
    both = votes_a.asked & votes_b.asked
    votes_a, votes_b = (dataclasses.replace(each, asked=both) for each in (votes_a, votes_b))
    of_a, of_b = _ratios(layout, votes_a), _ratios(layout, votes_b)
    differences = {
        name: (of_b[name][0] - of_a[name][0], of_a[name][1])
        for name in of_a
        if name.endswith("accuracy")
    }
    return {**_counts(layout, votes_a), **with_intervals(differences, bootstrap, seed)}


# ---------------------------------------------------------------------------------------------
# From rows to arrays


@dataclass(frozen=True)
class _Layout:
    """Where each prompt stands: pairs by id (the order of arrival tells nothing), then orders."""

    pair_ids: list[str]
    places: dict[str, int]
    """Prompt id -> its place in the flattened [N, 2]."""
    labels: Ints
    """[N, 2]"""


@dataclass(frozen=True)
class _Votes:
    verdicts: Ints
    """[N, 2, V]"""
    asked: Bools
    """[N, 2]: the judge had room for the prompt."""
    own: Bools
    """[N, 2]: sample 0 ended with a verdict by itself."""
    forced: Bools
    """[N, 2]: sample 0 has a verdict, and it was drawn by force."""
    failures: Counter[str]


def _lay_out(prompts: Iterable[Prompt]) -> _Layout:
    found: dict[tuple[str, str], tuple[str, int]] = {}
    for prompt in prompts:
        if prompt.label not in ("A", "B") or prompt.order not in ORDERS:
            raise WorkError(
                f"prompt {prompt.id} has order {prompt.order!r}, label {prompt.label!r}"
            )
        if (prompt.pair_id, prompt.order) in found:
            raise WorkError(f"pair {prompt.pair_id} stands twice in order {prompt.order}")
        found[prompt.pair_id, prompt.order] = (prompt.id, _CODES[prompt.label])
    pair_ids = sorted({pair_id for pair_id, _ in found})
    if not pair_ids:
        raise WorkError("there are no pairs to measure a judge on")
    places: dict[str, int] = {}
    labels = np.zeros((len(pair_ids), 2), np.int64)
    for row, pair_id in enumerate(pair_ids):
        for column, order in enumerate(ORDERS):
            if (pair_id, order) not in found:
                raise WorkError(f"pair {pair_id} has no prompt in order {order}; both are needed")
            id, labels[row, column] = found[pair_id, order]
            places[id] = 2 * row + column
    if len(places) != labels.size:
        raise WorkError("two of the prompts to measure a judge on have the same id")
    return _Layout(pair_ids, places, labels)


def _collect(layout: _Layout, judgments: Iterable[Judgment]) -> _Votes:
    drawn: dict[tuple[int, int], int] = {}
    asked = np.ones(layout.labels.size, np.bool_)
    own = np.zeros(layout.labels.size, np.bool_)
    forced = np.zeros(layout.labels.size, np.bool_)
    failures: Counter[str] = Counter()
    judge: str | None = None
    for judgment in judgments:
        if judgment.judge != (judge := judge or judgment.judge):
            raise WorkError(
                f"the judgments are of two judges, {judge} and {judgment.judge}, which make no one "
                "figure; measure each in a place of its own"
            )
        place = layout.places.get(judgment.prompt_id)
        if place is None:
            raise WorkError(f"judgment {judgment.id} is of no prompt here ({judgment.prompt_id})")
        if judgment.verdict not in _CODES:
            raise WorkError(f"judgment {judgment.id} has the unknown verdict {judgment.verdict!r}")
        if (place, judgment.sample) in drawn:
            raise WorkError(f"prompt {judgment.prompt_id} has sample {judgment.sample} twice")
        drawn[place, judgment.sample] = _CODES[judgment.verdict]
        asked[place] &= judgment.failure != "too_long"
        if judgment.sample == 0:
            own[place] = judgment.failure is None
            forced[place] = judgment.forced and judgment.verdict is not None
            if judgment.failure is not None:
                failures[judgment.failure] += 1
    votes = 1 + max((sample for _, sample in drawn), default=0)
    verdicts = np.zeros((layout.labels.size, votes), np.int64)
    for id, place in layout.places.items():
        for sample in range(votes):
            if (place, sample) not in drawn:
                pair_id = layout.pair_ids[place // 2]
                raise WorkError(f"prompt {id} of pair {pair_id} has no judgment of sample {sample}")
            verdicts[place, sample] = drawn[place, sample]
    shape = layout.labels.shape
    return _Votes(
        verdicts=verdicts.reshape(*shape, votes),
        asked=asked.reshape(shape),
        own=own.reshape(shape),
        forced=forced.reshape(shape),
        failures=failures,
    )


# ---------------------------------------------------------------------------------------------
# From arrays to shares


def _ratios(layout: _Layout, votes: _Votes) -> dict[str, Ratio]:
    """Every measure as counts per pair, over the prompts that were asked."""
    labels, asked, single = layout.labels, votes.asked, votes.verdicts[:, :, 0]
    vote = _plurality(votes.verdicts)
    right, majority_right = single == labels, vote == labels
    letter = (single == _A) | (single == _B)
    return {
        "accuracy": _share(right, asked),
        "consistent_accuracy": _of_pairs(right, asked),
        "share_a": _share(single == _A, asked & letter),
        "unparsed": _share(single == _NONE, asked),
        "ties": _share(single == _TIE, asked),
        "forced": _share(votes.forced, asked),
        "parsed_unforced": _share(votes.own, asked),
        "accuracy_unforced": _share(right, asked & votes.own),
        "majority_accuracy": _share(majority_right, asked),
        "majority_consistent_accuracy": _of_pairs(majority_right, asked),
        "majority_undecided": _share((vote != _A) & (vote != _B), asked),
    }


def _soundness(
    layout: _Layout, votes: _Votes, steps: Mapping[str, Mapping[str, bool]]
) -> dict[str, Ratio]:
    flags = {name: np.zeros(layout.labels.size, np.bool_) for name in next(iter(steps.values()))}
    for id, place in layout.places.items():
        for name, of_step in flags.items():
            of_step[place] = steps[id][name]
    by_step = {name: each.reshape(layout.labels.shape) for name, each in flags.items()}
    sound = np.all(list(by_step.values()), axis=0)
    asked, right = votes.asked, votes.verdicts[:, :, 0] == layout.labels
    return {
        "sound": _share(sound, asked),
        "sound_of_right": _share(sound, asked & right),
        **{f"step_{name}": _share(each, asked) for name, each in by_step.items()},
    }


def _plurality(verdicts: Ints) -> Ints:
    """[N, 2, V] -> [N, 2]: the verdict printed most often, none if two are."""
    counts = np.stack([(verdicts == code).sum(-1) for code in (_A, _B, _TIE)], axis=-1)
    most = counts.max(-1)
    clear = (counts == most[..., None]).sum(-1) == 1
    winner: Ints = np.where(clear & (most > 0), counts.argmax(-1) + _A, _NONE)
    return winner


def _per_pair(flags: Bools) -> Ints:
    return np.asarray(flags.sum(1, dtype=np.int64))


def _share(flags: Bools, of: Bools) -> Ratio:
    """Of the prompts `of`, those with the flag."""
    return _per_pair(flags & of), _per_pair(of)


def _of_pairs(flags: Bools, asked: Bools) -> Ratio:
    """Of the pairs that were asked in both orders, those with the flag in both."""
    both = asked.all(1)
    return np.asarray(flags.all(1) & both, np.int64), np.asarray(both, np.int64)


def with_intervals(ratios: Mapping[str, Ratio], bootstrap: int, seed: int) -> dict[str, Any]:
    """Measures given as counts per pair: each value, and its interval under `<name>_ci95`.

    Raises:
      RequestError: `bootstrap` is below 1.
    """
    if bootstrap < 1:
        raise RequestError(f"the number of bootstrap resamples must be at least 1, not {bootstrap}")
    over = np.stack([ratio[0] for ratio in ratios.values()])
    under = np.stack([ratio[1] for ratio in ratios.values()])
    draws = _resample(over, under, bootstrap, seed)
    result: dict[str, Any] = {}
    for index, name in enumerate(ratios):
        total = int(under[index].sum())
        usable = draws[index][~np.isnan(draws[index])]
        known = total > 0 and usable.size > 0
        result[name] = int(over[index].sum()) / total if total else None
        result[f"{name}_ci95"] = np.percentile(usable, [2.5, 97.5]).tolist() if known else None
    return result


def _resample(over: Ints, under: Ints, bootstrap: int, seed: int) -> Floats:
    """[M, N] counts -> [M, bootstrap] ratios of sums over N pairs drawn with replacement.

    How often each pair is drawn times the counts is a matrix product of small whole numbers, exact
    in float64: the sums are the same on any number of threads. A ratio over nothing is NaN.
    """
    measures, n = over.shape
    random = np.random.default_rng(seed)
    columns = np.concatenate([over, under]).astype(np.float64).T
    sums = np.empty((bootstrap, 2 * measures))
    step = max(1, _COUNTS_AT_ONCE // n)
    for start in range(0, bootstrap, step):
        size = min(step, bootstrap - start)
        drawn = random.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums[start : start + size] = times.astype(np.float64) @ columns
    tops, bottoms = sums[:, :measures].T, sums[:, measures:].T
    return np.where(bottoms > 0, tops / np.maximum(bottoms, 1), np.nan)
