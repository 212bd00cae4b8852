"""Shares against examples by hand, intervals against a brute force, and properties of both."""

from __future__ import annotations

import functools
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.evaluation import metrics
from ste_jax.records import Judgment, Prompt
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.tasks import PAIRWISE

measure = functools.partial(metrics.measure, PAIRWISE)
compare = functools.partial(metrics.compare, PAIRWISE)

Said = str | None
"""A verdict as these tests write it: A, B, tie, None, or one of them in lower case if forced."""

LABELS = ("A", "B")
SHARES = (
    "accuracy", "consistent_accuracy", "share_a", "unparsed", "ties", "forced", "parsed_unforced",
    "accuracy_unforced", "majority_accuracy", "majority_consistent_accuracy", "majority_undecided",
)  # fmt: skip


def prompts_of(pairs: int) -> list[Prompt]:
    return [
        Prompt(id=f"q{n:03}{order}", pair_id=f"p{n:03}", order=order, messages=(), label=label)
        for n in range(pairs)
        for order, label in zip(("ab", "ba"), LABELS, strict=True)
    ]


def judgment(prompt_id: str, sample: int, said: Said) -> Judgment:
    by_force = said in ("a", "b")
    verdict = said.upper() if said is not None and by_force else said
    return Judgment(
        id=f"{prompt_id}/{sample}",
        prompt_id=prompt_id,
        judge="judge",
        iteration=0,
        sample=sample,
        text="",
        token_ids=(),
        verdict=verdict,
        failure="no_verdict" if by_force else "cut_off" if said is None else None,
        forced=by_force,
        finish_reason="stop",
        free_tokens=0,
    )


def judge(said: Sequence[Sequence[Sequence[Said]]]) -> tuple[list[Prompt], list[Judgment]]:
    """`said[pair][order][sample]` as rows."""
    prompts = prompts_of(len(said))
    flat = [votes for pair in said for votes in pair]
    return prompts, [
        judgment(prompt.id, sample, each)
        for prompt, votes in zip(prompts, flat, strict=True)
        for sample, each in enumerate(votes)
    ]


def test_by_hand() -> None:
    # The right letters are A in the first order and B in the second.
    said: list[list[list[Said]]] = [
        [["A", "A", "A"], ["B", "A", "B"]],  # right in both orders, by vote too
        [["A", "B", "B"], ["A", "B", "B"]],  # right, wrong; by vote wrong, right
        [["b", "A", "A"], ["b", None, "B"]],  # forced: wrong, right; by vote right in both
        [[None, "A", "B"], ["tie", "tie", "B"]],  # nothing; by vote 1:1 and a tie
    ]
    found = measure(*judge(said), bootstrap=50)
    expected: dict[str, Any] = {
        "n": 4,
        "n_too_long": 0,
        "n_prompts": 8,
        "n_prompts_too_long": 0,
        "votes": 3,
        "accuracy": 4 / 8,
        "consistent_accuracy": 1 / 4,
        "share_a": 3 / 6,
        "unparsed": 1 / 8,
        "ties": 1 / 8,
        "forced": 2 / 8,
        "parsed_unforced": 5 / 8,
        "accuracy_unforced": 3 / 5,
        "majority_accuracy": 5 / 8,
        "majority_consistent_accuracy": 2 / 4,
        "majority_undecided": 2 / 8,
        "failures": {"cut_off": 1, "no_verdict": 2},
    }
    assert {key: found[key] for key in expected} == expected
    assert set(found) == set(expected) | {f"{name}_ci95" for name in SHARES}


@pytest.mark.parametrize(
    ("votes", "right"),
    [
        (["A"], True),
        (["B"], False),
        ([None], False),
        (["tie"], False),
        (["A", "B"], False),
        (["A", None], True),
        (["A", None, None], True),
        (["A", "tie"], False),
        (["A", "A", "tie", "B"], True),
        (["A", "A", "tie", "tie", "B"], False),
        (["A", "A", "B", "B", "tie"], False),
        (["a", "B", "a"], True),
        (["B", "B", "A"], False),
    ],
)
def test_the_vote_is_a_strict_plurality_of_what_was_printed(votes: list[Said], right: bool) -> None:
    prompts, judgments = judge([[votes, ["tie"] * len(votes)]])
    assert measure(prompts, judgments, bootstrap=1)["majority_accuracy"] == (0.5 if right else 0.0)


def test_forced_in_vain_is_unparsed_and_not_forced() -> None:
    prompts, judgments = judge([[["A"], ["B"]]])
    vain = {"verdict": None, "failure": "no_verdict", "forced": True}
    judgments[0] = Judgment(**{**vars(judgments[0]), **vain})
    found = measure(prompts, judgments, bootstrap=1)
    assert (found["unparsed"], found["forced"], found["parsed_unforced"]) == (0.5, 0.0, 0.5)
    assert found["failures"] == {"no_verdict": 1}


def test_shares_of_nothing_are_null() -> None:
    found = measure(*judge([[[None], [None]], [[None], [None]]]), bootstrap=20)
    for name in ("share_a", "accuracy_unforced"):
        assert found[name] is None and found[f"{name}_ci95"] is None
    assert found["accuracy"] == 0.0 and found["unparsed"] == 1.0
    json.dumps(found, allow_nan=False)


# ---------------------------------------------------------------------------------------------
# Intervals


def percentile(values: list[float], share: float) -> float:
    """Linear between the two nearest ranks."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def brute_interval(of_pair: list[tuple[int, int]], bootstrap: int, seed: int) -> list[float]:
    """The same draws, one pair at a time."""
    random_ = np.random.default_rng(seed)
    drawn = random_.integers(0, len(of_pair), size=(bootstrap, len(of_pair))).tolist()
    values = []
    for row in drawn:
        over = sum(of_pair[place][0] for place in row)
        under = sum(of_pair[place][1] for place in row)
        if under:
            values.append(over / under)
    return [percentile(values, 0.025), percentile(values, 0.975)]


def random_said(pairs: int, votes: int, seed: int) -> list[list[list[Said]]]:
    draw = random.Random(seed)
    options: list[Said] = ["A", "A", "B", "B", "a", "b", "tie", None]
    return [[[draw.choice(options) for _ in range(votes)] for _ in LABELS] for _ in range(pairs)]


def test_intervals_are_those_of_a_brute_force() -> None:
    said = random_said(pairs=23, votes=3, seed=5)
    found = measure(*judge(said), bootstrap=333, seed=11)
    right = [
        [votes[0] is not None and votes[0].upper() == label for votes, label in zip(p, LABELS)]  # noqa: B905
        for p in said
    ]
    letters = [[str(votes[0]).upper() for votes in pair] for pair in said]
    by_pair = {
        "accuracy": [(sum(each), 2) for each in right],
        "consistent_accuracy": [(int(all(each)), 1) for each in right],
        "unparsed": [(sum(votes[0] is None for votes in pair), 2) for pair in said],
        "share_a": [(of.count("A"), of.count("A") + of.count("B")) for of in letters],
    }
    for name, of_pair in by_pair.items():
        expected = brute_interval(of_pair, 333, 11)
        assert found[f"{name}_ci95"] == pytest.approx(expected, abs=1e-12), name


def test_intervals_do_not_depend_on_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = judge(random_said(pairs=12, votes=1, seed=1))
    whole = measure(*rows, bootstrap=100)
    monkeypatch.setattr(metrics, "_COUNTS_AT_ONCE", 12 * 7)
    assert measure(*rows, bootstrap=100) == whole


def test_the_interval_is_about_the_normal_one_and_by_pair() -> None:
    """400 pairs, both orders of a pair right or wrong together: the error is that of 400 draws."""
    said: list[list[list[Said]]] = [
        [["A"], ["B"]] if n % 5 < 3 else [["B"], ["A"]] for n in range(400)
    ]
    found = measure(*judge(said), bootstrap=2000)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 400)
    assert found["accuracy"] == 0.6
    assert found["accuracy_ci95"] == pytest.approx([0.6 - half, 0.6 + half], abs=0.01)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    truth, inside = 0.7, 0
    for seed in range(100):
        draw = random.Random(seed)
        said: list[list[list[Said]]] = [
            [["A" if draw.random() < truth else "B"], ["B" if draw.random() < truth else "A"]]
            for _ in range(60)
        ]
        low, high = measure(*judge(said), bootstrap=200, seed=seed)["accuracy_ci95"]
        inside += low <= truth <= high
    assert 88 <= inside <= 99


# ---------------------------------------------------------------------------------------------
# Properties

votes_ = st.integers(1, 3).flatmap(
    lambda v: st.lists(
        st.lists(
            st.lists(st.sampled_from(["A", "B", "a", "b", "tie", None]), min_size=v, max_size=v),
            min_size=2,
            max_size=2,
        ),
        min_size=1,
        max_size=7,
    )
)


@settings(deadline=None, max_examples=40)
@given(said=votes_, order=st.randoms(use_true_random=False))
def test_the_order_of_arrival_tells_nothing(said: Any, order: random.Random) -> None:
    prompts, judgments = judge(said)
    expected = measure(prompts, judgments, bootstrap=40)
    order.shuffle(prompts)
    order.shuffle(judgments)
    assert measure(iter(prompts), iter(judgments), bootstrap=40) == expected


@settings(deadline=None, max_examples=40)
@given(said=votes_)
def test_bounds_between_the_shares(said: Any) -> None:
    found = measure(*judge(said), bootstrap=40)
    for kind in ("", "majority_"):
        accuracy, both = found[f"{kind}accuracy"], found[f"{kind}consistent_accuracy"]
        assert 2 * accuracy - 1 - 1e-9 <= both <= accuracy
    whole = found["parsed_unforced"] + found["forced"] + found["unparsed"]
    assert whole == pytest.approx(1)
    assert sum(found["failures"].values()) == round(
        (1 - found["parsed_unforced"]) * found["n_prompts"]
    )
    assert found["accuracy"] + found["unparsed"] + found["ties"] <= 1 + 1e-9
    for name in SHARES:
        if found[name] is not None:
            low, high = found[f"{name}_ci95"] or (0, 1)
            assert 0 <= low <= high <= 1 and 0 <= found[name] <= 1
    if found["votes"] == 1:
        assert found["majority_accuracy"] == found["accuracy"]


@settings(deadline=None, max_examples=40)
@given(said=votes_)
def test_swapping_the_letters_changes_only_the_share_of_a(said: Any) -> None:
    """Both answers named the other way round: pair for pair the same judge."""
    other = {"A": "B", "B": "A", "a": "b", "b": "a"}
    swapped = [[[other.get(v, v) for v in votes] for votes in reversed(pair)] for pair in said]
    one = measure(*judge(said), bootstrap=40)
    two = measure(*judge(swapped), bootstrap=40)
    if one["share_a"] is not None:
        assert two["share_a"] == pytest.approx(1 - one["share_a"])
    for name in SHARES:
        if name != "share_a":
            assert two[name] == one[name] and two[f"{name}_ci95"] == one[f"{name}_ci95"]


@settings(deadline=None, max_examples=40)
@given(said=votes_)
def test_the_vote_against_a_counter(said: Any) -> None:
    right = 0
    for pair in said:
        for votes, label in zip(pair, LABELS, strict=True):
            printed = Counter(v if v == "tie" else v.upper() for v in votes if v is not None)
            ranked = printed.most_common()
            clear = ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1])
            right += bool(clear) and ranked[0][0] == label
    found = measure(*judge(said), bootstrap=1)
    assert found["majority_accuracy"] == right / (2 * len(said))


# ---------------------------------------------------------------------------------------------
# Comparing two judges


def test_the_difference_by_hand() -> None:
    wrong: list[list[Said]] = [["B"], ["A"]]
    half: list[list[Said]] = [["A"], ["A"]]
    right: list[list[Said]] = [["A"], ["B"]]
    prompts, before = judge([wrong, half, right, half])
    _, after = judge([right, right, half, half])
    found = compare(prompts, before, after, bootstrap=200)
    assert found["n"] == 4
    assert found["accuracy"] == 6 / 8 - 4 / 8
    assert found["consistent_accuracy"] == 2 / 4 - 1 / 4
    of_pair = [(2, 2), (1, 2), (-1, 2), (0, 2)]
    assert found["accuracy_ci95"] == pytest.approx(brute_interval(of_pair, 200, 0), abs=1e-12)
    assert "accuracy_unforced" not in found


def test_pairing_makes_a_small_steady_gain_plain() -> None:
    """Two judges of about 0.6 that agree but for a few pairs: unpaired intervals overlap."""
    first: list[Any] = [[["A"], ["B"]] if n % 5 < 3 else [["B"], ["A"]] for n in range(100)]
    second = [[["A"], ["B"]] if n % 5 < 3 or n % 10 == 4 else said for n, said in enumerate(first)]
    prompts, before = judge(first)
    _, after = judge(second)
    one, two = (measure(prompts, rows, bootstrap=1000) for rows in (before, after))
    assert one["accuracy_ci95"][1] > two["accuracy_ci95"][0]
    assert compare(prompts, before, after, bootstrap=1000)["accuracy_ci95"][0] > 0


@settings(deadline=None, max_examples=40)
@given(said=votes_)
def test_a_judge_does_not_differ_from_itself(said: Any) -> None:
    prompts, judgments = judge(said)
    found = compare(prompts, judgments, judgments, bootstrap=20)
    assert found["accuracy"] == 0 and found["consistent_accuracy_ci95"] == [0, 0]


def test_the_numbers_of_votes_may_differ() -> None:
    prompts, single = judge([[["B"], ["B"]]])
    _, three = judge([[["B", "A", "A"], ["B", "B", "A"]]])
    found = compare(prompts, single, three, bootstrap=5)
    assert found["accuracy"] == 0 and found["majority_accuracy"] == 0.5


# ---------------------------------------------------------------------------------------------
# What cannot be measured


def test_what_is_missing_is_named() -> None:
    prompts, judgments = judge([[["A", "A"], ["B", "B"]], [["A", "A"], ["B", "B"]]])
    with pytest.raises(WorkError, match="pair p001 has no prompt in order ba"):
        measure(prompts[:-1], judgments, bootstrap=1)
    with pytest.raises(WorkError, match="prompt q001ba of pair p001 has no judgment of sample 1"):
        measure(prompts, judgments[:-1], bootstrap=1)
    with pytest.raises(WorkError, match="prompt q000ab of pair p000 has no judgment of sample 0"):
        measure(prompts, [], bootstrap=1)
    with pytest.raises(WorkError, match="no pairs"):
        measure([], [], bootstrap=1)


def test_what_is_too_much_is_named() -> None:
    prompts, judgments = judge([[["A"], ["B"]]])
    with pytest.raises(WorkError, match="pair p000 stands twice in order ab"):
        measure([*prompts, prompts[0]], judgments, bootstrap=1)
    with pytest.raises(WorkError, match="prompt q000ab has sample 0 twice"):
        measure(prompts, [*judgments, judgments[0]], bootstrap=1)
    with pytest.raises(WorkError, match="q9/0 is of no prompt here"):
        measure(prompts, [*judgments, judgment("q9", 0, "A")], bootstrap=1)
    with pytest.raises(WorkError, match="unknown verdict 'C'"):
        measure(prompts, [judgment("q000ab", 0, "C")], bootstrap=1)
    with pytest.raises(RequestError, match="at least 1, not 0"):
        measure(prompts, judgments, bootstrap=0)


def test_a_judgment_is_sound_where_each_of_its_steps_is() -> None:
    prompts, judgments = judge([[["A"], ["A"]], [["A"], ["A"]]])  # right in the first order
    right = ((True, True), (True, False), (False, True), (True, False))
    steps = {
        prompt.id: {"solved": solved, "concluded": concluded}
        for prompt, (solved, concluded) in zip(prompts, right, strict=True)
    }
    found = measure(prompts, judgments, bootstrap=10, steps=steps)
    assert (found["step_solved"], found["step_concluded"]) == (0.75, 0.5)
    assert found["sound"] == 0.25
    assert found["sound_of_right"] == 0.5


# ---------------------------------------------------------------------------------------------
# Prompts that do not fit


def without_room(said: Sequence[Judgment], *prompt_ids: str) -> list[Judgment]:
    lost = {"verdict": None, "failure": "too_long", "forced": False}
    return [
        Judgment(**{**vars(one), **lost}) if one.prompt_id in prompt_ids else one for one in said
    ]


def test_prompts_that_do_not_fit_are_in_no_share() -> None:
    right: list[list[Said]] = [["A"], ["B"]]
    prompts, judgments = judge([right, [["B"], ["B"]], right, right])
    # Of the second pair one order, of the third both.
    gone = without_room(judgments, "q001ab", "q002ab", "q002ba")
    found = measure(prompts, gone, bootstrap=20)
    assert (found["n"], found["n_too_long"]) == (4, 2)
    assert (found["n_prompts"], found["n_prompts_too_long"]) == (8, 3)
    assert found["accuracy"] == 1.0 and found["consistent_accuracy"] == 1.0
    assert found["unparsed"] == 0.0 and found["parsed_unforced"] == 1.0
    assert found["share_a"] == 2 / 5
    assert found["failures"] == {"too_long": 3}
    # An error is no lack of room: what the judge failed to say is wrong.
    failed = [Judgment(**{**vars(one), "failure": "error"}) if one.verdict is None else one
              for one in gone]  # fmt: skip
    assert measure(prompts, failed, bootstrap=1)["accuracy"] == 5 / 8


def test_where_nothing_fits_every_share_is_null() -> None:
    prompts, judgments = judge([[["A"], ["B"]]])
    found = measure(prompts, without_room(judgments, "q000ab", "q000ba"), bootstrap=5)
    assert found["n_too_long"] == 1
    assert all(found[name] is None and found[f"{name}_ci95"] is None for name in SHARES)
    json.dumps(found, allow_nan=False)


def test_two_judges_are_compared_on_what_fits_both() -> None:
    right: list[list[Said]] = [["A"], ["B"]]
    wrong: list[list[Said]] = [["B"], ["A"]]
    prompts, of_a = judge([right, wrong, wrong])
    _, of_b = judge([right, right, wrong])
    found = compare(prompts, without_room(of_a, "q002ab", "q002ba"), of_b, bootstrap=5)
    assert (found["n"], found["n_too_long"], found["accuracy"]) == (3, 1, 0.5)
    found = compare(prompts, of_a, without_room(of_b, "q001ab", "q001ba"), bootstrap=5)
    assert (found["n_too_long"], found["accuracy"], found["consistent_accuracy"]) == (1, 0.0, 0.0)


def test_groups_say_how_many_did_not_fit() -> None:
    prompts, judgments = judge([[["A"], ["B"]], [["A"], ["A"]]])
    gone = without_room(judgments, "q001ba")
    found = metrics.measure_groups(
        PAIRWISE, prompts, gone, {"p000": "easy", "p001": "hard"}, bootstrap=5
    )
    assert found["hard"]["n_too_long"] == 1 and found["hard"]["accuracy"] == 1.0
    assert found["hard"]["consistent_accuracy"] is None
    assert found["easy"]["n_too_long"] == 0
