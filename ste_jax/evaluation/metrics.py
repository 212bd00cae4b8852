"""How good is a judge, and do two judges differ?

Measures count the questions about pairs that were fully judged: with `pairwise` each order of a
pair is a question, with `pointwise` both scores of a pair are one. A judgment is right if its
outcome is the question's answer; a tie and a missing outcome are wrong, and both have a column of
their own, so that nothing hides in the accuracy. A question that is too long for the judge
(`too_long`) was not judged: it is in no share, and its pair is in no share over pairs; both are
counted. Intervals are 95% percentile bootstrap (Efron 1979) over *pairs*: the questions of a pair
are not independent, and resampling them would make intervals too narrow.

Shapes: `N` pairs, `Q` questions of each, `V` samples (votes) of each question, `M` measures.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ste_jax.records import Judgment, Prompt
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.tasks import Question, Task

_NONE = 0
"""The code of a missing outcome; the task's outcomes have codes from 1 on."""
_COUNTS_AT_ONCE = 2**22

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Ratio = tuple[Ints, Ints]
"""A measure as counts per pair, [N] over [N]: its value is the ratio of the sums."""


def measure(
    task: Task,
    prompts: Iterable[Prompt],
    judgments: Iterable[Judgment],
    *,
    bootstrap: int,
    seed: int = 0,
    steps: Mapping[str, Mapping[str, bool]] | None = None,
) -> dict[str, Any]:
    """Measure one judge on the questions that a task asks about some pairs.

    The *single* outcome of a question is that of sample 0; `majority_*` take the strict plurality
    of the outcomes of all V samples (no strict plurality, or one of ties, is wrong). Verdicts count
    as printed, by force or not; what the judge said by itself has `failure` null.

    `steps` says, by question, which steps of the single judgment are right, where that can be
    recomputed.

    Returns, ready for JSON, every share with its interval under `<name>_ci95` as [low, high]:
      n: pairs; n_prompts: their prompts; votes: V.
      n_too_long, n_prompts_too_long: of those, with a prompt that the judge has no room for, and
        those prompts; every share below is of the others, and null where there are none.
      accuracy: single outcome right, over questions.
      consistent_accuracy: single outcome right in all questions of a pair, over pairs (with two
        questions chance is a quarter); only where a pair makes several.
      the task's own shares (share_a): of the single outcomes that may be right.
      unparsed, ties, forced: single outcome missing, undecided, drawn by force, over questions.
      parsed_unforced: the judge gave every verdict by itself, over questions.
      accuracy_unforced: right among those; null if there are none.
      majority_accuracy, majority_consistent_accuracy: as above for the vote.
      majority_undecided: questions without a strict plurality for an outcome that may be right.
      sound, sound_of_right: with `steps` only; judgments right in every step, over questions, and
        over those with a right outcome; step_NAME: right in this step, over questions.
      failures: why the judge gave no verdict by itself, {kind: questions}, over the single outcomes
        and those too long; they and the ones counted in parsed_unforced add up to all questions.

    Raises:
      WorkError: no pairs, a question or a judgment missing or doubled, a judgment of another prompt
        or of another judge; names it.
      RequestError: `bootstrap` is below 1.
    """
    layout = _lay_out(task, prompts)
    votes = _collect(layout, judgments)
    ratios = _ratios(layout, votes)
    if steps is not None:
        ratios |= _soundness(layout, votes, steps)
    result: dict[str, Any] = {
        **_counts(layout, votes),
        "n_prompts": layout.labels.size * task.prompts_per_question,
        "n_prompts_too_long": votes.prompts_too_long,
        "votes": votes.verdicts.shape[2],
    }
    result.update(with_intervals(ratios, bootstrap, seed))
    result["failures"] = dict(sorted(votes.failures.items()))
    return result


def measure_groups(
    task: Task,
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
        layout = _lay_out(task, prompts_of[group])
        votes = _collect(layout, judgments_of[group])
        ratios = _ratios(layout, votes)
        names = ("accuracy", "consistent_accuracy")
        kept = {name: ratios[name] for name in names if name in ratios}
        found[group] = {**_counts(layout, votes), **with_intervals(kept, bootstrap, seed=0)}
    return found


def _counts(layout: _Layout, votes: _Votes) -> dict[str, int]:
    return {"n": layout.pairs, "n_too_long": int((~votes.asked).any(1).sum())}


def compare(
    task: Task,
    prompts: Iterable[Prompt],
    judgments_a: Iterable[Judgment],
    judgments_b: Iterable[Judgment],
    *,
    bootstrap: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the difference, judge b less judge a, on the same prompts, without those that are too
    long for one of them. Both judges are resampled by the same pairs.

    Returns:
      n, n_too_long, and all of `measure`'s that end in `accuracy` as differences in -1..1, each
      with `<name>_ci95`; null where nothing was asked of both. An interval without 0 says that they
      differ.

    Raises:
      WorkError, RequestError: as `measure`.
    """
    layout = _lay_out(task, prompts)
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
    """The place of each question in arrays: pairs by id (whatever order they came in), and the
    questions of a pair in the task's order."""

    task: Task
    questions: list[Question]
    """In the order of the flattened [N, Q]."""
    labels: Ints
    """[N, Q]: codes of the answers."""

    def code(self, outcome: str | None) -> int | None:
        """The code of an outcome; None if the task does not know it."""
        known = (None, *self.task.decided, *self.task.undecided)
        return known.index(outcome) if outcome in known else None

    @property
    def pairs(self) -> int:
        """N."""
        return int(self.labels.shape[0])


@dataclass(frozen=True)
class _Votes:
    verdicts: Ints
    """[N, Q, V]: codes of the outcomes."""
    asked: Bools
    """[N, Q]: whether the judge had room for the prompts."""
    own: Bools
    """[N, Q]: whether sample 0 ended with a verdict by itself, on every prompt."""
    forced: Bools
    """[N, Q]: whether sample 0 has an outcome of which a verdict was drawn by force."""
    failures: Counter[str]
    prompts_too_long: int


def _lay_out(task: Task, prompts: Iterable[Prompt]) -> _Layout:
    rows = list(prompts)
    for prompt in rows:
        if prompt.order not in task.orders:
            raise WorkError(
                f"prompt {prompt.id} has order {prompt.order!r}, which {task.name} has not"
            )
    found: dict[tuple[str, str], Question] = {}
    for question in task.questions(rows):
        order = question.prompts[0].order
        if (question.pair_id, order) in found:
            raise WorkError(f"pair {question.pair_id} stands twice in order {order}")
        found[question.pair_id, order] = question
    pair_ids = sorted({pair_id for pair_id, _ in found})
    if not pair_ids:
        raise WorkError("there are no pairs to measure a judge on")
    questions = []
    for pair_id in pair_ids:
        for order in task.orders[: task.questions_per_pair]:
            if (pair_id, order) not in found:
                raise WorkError(f"pair {pair_id} has no prompt in order {order}")
            questions.append(found[pair_id, order])
    if len({row.id for row in rows}) != len(rows):
        raise WorkError("two of the prompts to measure a judge on have the same id")
    answers = [task.answer(each) for each in questions]
    for question, answer in zip(questions, answers, strict=True):
        if answer not in task.decided:
            raise WorkError(f"prompt {question.prompts[0].id} has the label {answer!r}")
    labels = [task.decided.index(answer) + 1 for answer in answers]
    shape = (len(pair_ids), task.questions_per_pair)
    return _Layout(task, questions, np.asarray(labels, np.int64).reshape(shape))


def _collect(layout: _Layout, judgments: Iterable[Judgment]) -> _Votes:
    drawn: dict[tuple[str, int], Judgment] = {}
    asked_of = {prompt.id for each in layout.questions for prompt in each.prompts}
    too_long: set[str] = set()
    judge: str | None = None
    for judgment in judgments:
        if judgment.judge != (judge := judge or judgment.judge):
            raise WorkError(
                f"the judgments are of two judges, {judge} and {judgment.judge}, which make no one "
                "figure; measure each in a place of its own"
            )
        id = judgment.prompt_id
        if id not in asked_of:
            raise WorkError(f"judgment {judgment.id} is of no prompt here ({id})")
        if (id, judgment.sample) in drawn:
            raise WorkError(f"prompt {id} has sample {judgment.sample} twice")
        drawn[id, judgment.sample] = dataclasses.replace(judgment, text="", token_ids=())
        if judgment.failure == "too_long":
            too_long.add(id)
    votes = 1 + max((sample for _, sample in drawn), default=0)
    verdicts = np.zeros((layout.labels.size, votes), np.int64)
    singles: list[list[Judgment]] = []
    for place, question in enumerate(layout.questions):
        for sample in range(votes):
            verdicts[place, sample] = _code(layout, question, _of_sample(question, sample, drawn))
        singles.append(_of_sample(question, 0, drawn))
    shape = layout.labels.shape
    failed = [[each.failure for each in of if each.failure is not None] for of in singles]

    def flags(values: Iterable[bool]) -> Bools:
        return np.fromiter(values, np.bool_, layout.labels.size).reshape(shape)

    by_force = flags(any(each.forced for each in of) for of in singles)
    asked = (not too_long & {prompt.id for prompt in each.prompts} for each in layout.questions)
    coded = verdicts.reshape(*shape, votes)
    return _Votes(
        verdicts=coded,
        asked=flags(asked),
        own=flags(not kinds for kinds in failed),
        forced=by_force & (coded[:, :, 0] != _NONE),
        failures=Counter(str(kinds[0]) for kinds in failed if kinds),
        prompts_too_long=len(too_long),
    )


def _of_sample(
    question: Question, sample: int, drawn: Mapping[tuple[str, int], Judgment]
) -> list[Judgment]:
    for prompt in question.prompts:
        if (prompt.id, sample) not in drawn:
            raise WorkError(
                f"prompt {prompt.id} of pair {question.pair_id} has no judgment of sample {sample}"
            )
    return [drawn[prompt.id, sample] for prompt in question.prompts]


def _code(layout: _Layout, question: Question, judgments: Sequence[Judgment]) -> int:
    outcome = layout.task.outcome_of(question, judgments)
    code = layout.code(outcome)
    if code is None:
        raise WorkError(f"judgment {judgments[0].id} has the unknown verdict {outcome!r}")
    return code


# ---------------------------------------------------------------------------------------------
# From arrays to shares


def _ratios(layout: _Layout, votes: _Votes) -> dict[str, Ratio]:
    """Every measure as counts per pair, over the questions that were asked."""
    task, several = layout.task, layout.task.questions_per_pair > 1
    labels, asked, single = layout.labels, votes.asked, votes.verdicts[:, :, 0]
    decided = len(task.decided)
    vote = _plurality(votes.verdicts, decided + len(task.undecided))
    right, majority_right = single == labels, vote == labels
    is_decided = (single > _NONE) & (single <= decided)
    return {
        "accuracy": _share(right, asked),
        **({"consistent_accuracy": _of_pairs(right, asked)} if several else {}),
        **{
            name: _share(single == layout.code(outcome), asked & is_decided)
            for name, outcome in task.shares.items()
        },
        "unparsed": _share(single == _NONE, asked),
        "ties": _share(single > decided, asked),
        "forced": _share(votes.forced, asked),
        "parsed_unforced": _share(votes.own, asked),
        "accuracy_unforced": _share(right, asked & votes.own),
        "majority_accuracy": _share(majority_right, asked),
        **({"majority_consistent_accuracy": _of_pairs(majority_right, asked)} if several else {}),
        "majority_undecided": _share((vote == _NONE) | (vote > decided), asked),
    }


def _soundness(
    layout: _Layout, votes: _Votes, steps: Mapping[str, Mapping[str, bool]]
) -> dict[str, Ratio]:
    by_step = {
        name: np.asarray([steps[each.id][name] for each in layout.questions], np.bool_).reshape(
            layout.labels.shape
        )
        for name in next(iter(steps.values()))
    }
    sound = np.all(list(by_step.values()), axis=0)
    asked, right = votes.asked, votes.verdicts[:, :, 0] == layout.labels
    return {
        "sound": _share(sound, asked),
        "sound_of_right": _share(sound, asked & right),
        **{f"step_{name}": _share(each, asked) for name, each in by_step.items()},
    }


def _plurality(verdicts: Ints, outcomes: int) -> Ints:
    """[N, Q, V] -> [N, Q]: the most frequent outcome; none if two are equally frequent."""
    codes = range(_NONE + 1, _NONE + 1 + outcomes)
    counts = np.stack([(verdicts == code).sum(-1) for code in codes], axis=-1)
    most = counts.max(-1)
    clear = (counts == most[..., None]).sum(-1) == 1
    winner: Ints = np.where(clear & (most > 0), counts.argmax(-1) + _NONE + 1, _NONE)
    return winner


def _per_pair(flags: Bools) -> Ints:
    return np.asarray(flags.sum(1, dtype=np.int64))


def _share(flags: Bools, of: Bools) -> Ratio:
    """The share of the questions `of` that have the flag."""
    return _per_pair(flags & of), _per_pair(of)


def _of_pairs(flags: Bools, asked: Bools) -> Ratio:
    """The share of pairs with the flag in every question, of those with every question asked."""
    every = asked.all(1)
    return np.asarray(flags.all(1) & every, np.int64), np.asarray(every, np.int64)


def with_intervals(ratios: Mapping[str, Ratio], bootstrap: int, seed: int) -> dict[str, Any]:
    """The value of each measure, given as counts per pair, and its interval as `<name>_ci95`.

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
