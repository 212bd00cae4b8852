"""One correct judgment per prompt, balanced, and every prompt accounted for."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.config.schema import CurateKnobs, DpoKnobs
from ste_jax.records import Judgment, Prompt
from ste_jax.stages.curate import curate, training_examples
from ste_jax.stages.preferences import prefer, preference_examples
from ste_jax.tasks import PAIRWISE

letters = st.sampled_from(["A", "B", "tie", None])


def prompt(number: int, label: str) -> Prompt:
    return Prompt(id=f"p{number}", pair_id="x", order="ab", messages=(), label=label)


def judgment(number: int, sample: int, verdict: str | None) -> Judgment:
    return Judgment(
        id=f"j{number}-{sample}",
        prompt_id=f"p{number}",
        judge="m",
        iteration=1,
        sample=sample,
        text="t",
        token_ids=(1, 2),
        verdict=verdict,
        failure=None,
        forced=False,
        finish_reason="stop",
        free_tokens=2,
    )


def rows(drawn):
    """Prompts of these labels, and judgments of these verdicts."""
    prompts = [prompt(n, label) for n, (label, _) in enumerate(drawn)]
    judgments = [
        judgment(n, sample, verdict)
        for n, (_, verdicts) in enumerate(drawn)
        for sample, verdict in enumerate(verdicts)
    ]
    return prompts, judgments


@given(
    st.lists(
        st.tuples(st.sampled_from("AB"), st.lists(letters, min_size=1, max_size=5)), max_size=12
    )
)
def test_kept_are_correct_balanced_and_of_the_lowest_index(drawn):
    prompts, judgments = rows(drawn)
    found = curate(PAIRWISE, prompts, judgments, CurateKnobs())
    by_id = {each.id: each for each in judgments}
    labels = {each.id: each.label for each in prompts}
    for prompt_id, judgment_id in found.kept.items():
        mine = [j for j in judgments if j.prompt_id == prompt_id and j.verdict == labels[prompt_id]]
        assert by_id[judgment_id] == min(mine, key=lambda each: each.sample)
    kept = Counter(labels[id] for id in found.kept)
    assert kept["A"] == kept["B"] == found.kept_by_class["A"] == found.kept_by_class["B"]
    assert len(found.kept) + sum(found.dropped.values()) == len(prompts)


@pytest.mark.parametrize("kind", ["error", "too_long"])
def test_what_could_not_be_asked_has_a_reason_of_its_own(kind):
    prompts = [prompt(0, "A"), prompt(1, "A")]
    drawn = [(0, 0, None), (0, 1, None), (1, 0, kind), (1, 1, None)]
    judgments = [judgment(n, s, None) for n, s, _ in drawn]
    judgments[:2] = [dataclasses.replace(each, failure=kind) for each in judgments[:2]]
    judgments[2] = dataclasses.replace(judgments[2], failure=kind)
    found = curate(PAIRWISE, prompts, judgments, CurateKnobs())
    # Of the second prompt one sample was answered, without a verdict.
    assert found.dropped == {kind: 1, "no_verdict": 1}
    chosen = prefer(PAIRWISE, prompts, judgments, DpoKnobs(), balance=False)
    assert chosen.prompts_dropped == {kind: 1, "no_correct": 1}


def test_reasons():
    prompts = [prompt(0, "A"), prompt(1, "A"), prompt(2, "B"), prompt(3, "B"), prompt(4, "A")]
    verdicts = [["B", "B"], [None, None], ["B", "A"], ["B", "B"], ["A", "A"]]
    judgments = [judgment(n, s, v) for n, each in enumerate(verdicts) for s, v in enumerate(each)]
    found = curate(PAIRWISE, prompts, judgments, CurateKnobs(min_agreement=0.6))
    assert found.dropped == {"low_agreement": 1, "no_correct": 1, "no_verdict": 1}
    assert found.kept == {"p3": "j3-0", "p4": "j4-0"}


@given(
    st.lists(
        st.tuples(st.sampled_from("AB"), st.lists(letters, min_size=1, max_size=4)), max_size=12
    ),
    st.integers(0, 8),
)
def test_the_control_keeps_the_first_verdict_whatever_it_is(drawn, limit):
    prompts, judgments = rows(drawn)
    found = curate(PAIRWISE, prompts, judgments, CurateKnobs(verdicts="any", limit=limit))
    by_id = {each.id: each for each in judgments}
    for prompt_id, judgment_id in found.kept.items():
        mine = [j for j in judgments if j.prompt_id == prompt_id and j.verdict in ("A", "B")]
        assert by_id[judgment_id] == mine[0]
    verdicts = Counter(by_id[id].verdict for id in found.kept.values())
    assert verdicts["A"] == verdicts["B"] == found.kept_by_class["A"]
    assert len(found.kept) + sum(found.dropped.values()) == len(prompts)
    first = [next((v for v in verdicts if v in ("A", "B")), None) for _, verdicts in drawn]
    most = 2 * min(first.count("A"), first.count("B"))
    assert len(found.kept) == (min(most, limit // 2 * 2) if limit else most)


def test_training_rows_hold_the_ids_that_were_sampled():
    prompts, judgments = [prompt(0, "A")], [judgment(0, 0, "A"), judgment(0, 1, "A")]
    (row,) = training_examples(PAIRWISE, prompts, judgments, lambda each: each.sample == 1)
    assert (row.judgment_id, row.completion_ids, row.label) == ("j0-1", (1, 2), "A")


@given(
    st.lists(
        st.tuples(st.sampled_from("AB"), st.lists(letters, min_size=1, max_size=6)), max_size=12
    ),
    st.integers(1, 4),
    st.booleans(),
)
def test_preferences_are_a_correct_and_a_failed_judgment_of_one_prompt(drawn, most, balance):
    prompts, judgments = rows(drawn)
    knobs = DpoKnobs(pairs_per_prompt=most)
    found = prefer(PAIRWISE, prompts, judgments, knobs, balance=balance)
    by_id = {each.id: each for each in judgments}
    labels = {each.id: each.label for each in prompts}
    letters_kept, negatives, seen = Counter(A=0, B=0), Counter(incorrect=0, unparsed=0), set()
    for prompt_id, pairs in found.kept.items():
        assert 1 <= len(pairs) <= most
        for chosen, rejected, negative in pairs:
            assert (chosen, rejected) not in seen
            seen.add((chosen, rejected))
            assert by_id[chosen].prompt_id == by_id[rejected].prompt_id == prompt_id
            assert by_id[chosen].verdict == labels[prompt_id] != by_id[rejected].verdict
            assert (negative == "unparsed") == (by_id[rejected].verdict is None)
            letters_kept[labels[prompt_id]] += 1
            negatives[negative] += 1
    assert letters_kept == found.kept_by_class
    assert negatives == found.negatives
    if balance:
        assert letters_kept["A"] == letters_kept["B"]
    # every prompt and every possible pair is accounted for
    possible = {
        prompt.id: (
            sum(j.verdict == prompt.label for j in judgments if j.prompt_id == prompt.id),
            sum(j.verdict != prompt.label for j in judgments if j.prompt_id == prompt.id),
        )
        for prompt in prompts
    }
    total = sum(right * wrong for right, wrong in possible.values())
    assert total == sum(letters_kept.values()) + sum(found.pairs_dropped.values())
    without = Counter(
        "no_correct" if not right else "no_failed"
        for right, wrong in possible.values()
        if not right * wrong
    )
    lost = dict(found.prompts_dropped)
    cut = lost.pop("balance", 0)
    assert lost == without
    assert len(found.kept) + cut + sum(without.values()) == len(prompts)
    # and the table of each shard is just what was chosen
    made = preference_examples(PAIRWISE, prompts, judgments, found.kept)
    assert {(row.judgment_id, row.rejected_judgment_id) for row in made} == seen
    assert len({row.id for row in made}) == len(made)


def test_kinds_of_failure_can_be_left_out_and_errors_are_none():
    prompts = [prompt(0, "A")]
    judgments = [judgment(0, n, verdict) for n, verdict in enumerate(["A", "B", None, None])]
    judgments[3] = dataclasses.replace(judgments[3], failure="error")
    found = prefer(PAIRWISE, prompts, judgments, DpoKnobs(), balance=False)
    assert found.negatives == {"incorrect": 1, "unparsed": 1}
    only = prefer(PAIRWISE, prompts, judgments, DpoKnobs(negatives=("unparsed",)), balance=False)
    assert [pair.rejected for pair in only.kept["p0"]] == ["j0-2"]


def test_of_what_was_drawn_besides_only_the_failed_are_paired():
    prompts, judgments = rows([("A", ["A", "A"]), ("B", ["A"])])
    more = [judgment(0, 2, "A"), judgment(0, 3, "B"), judgment(1, 2, "B")]
    found = prefer(PAIRWISE, prompts, judgments, DpoKnobs(), balance=False, more=more)
    assert {id: sorted(pairs) for id, pairs in found.kept.items()} == {
        "p0": [("j0-0", "j0-3", "incorrect"), ("j0-1", "j0-3", "incorrect")]
    }
    assert found.prompts_dropped == {"no_correct": 1}


def test_the_choice_does_not_depend_on_the_order_of_the_rows():
    prompts = [prompt(n, "AB"[n % 2]) for n in range(6)]
    verdicts = ["A", "B", "A", "B", None]
    judgments = [judgment(n, s, v) for n in range(6) for s, v in enumerate(verdicts)]
    one = prefer(PAIRWISE, prompts, judgments, DpoKnobs(), balance=True)
    other = prefer(PAIRWISE, prompts[::-1], judgments[::-1], DpoKnobs(), balance=True)
    assert one.kept_by_class == other.kept_by_class == {"A": 12, "B": 12}
    assert {id: set(pairs) for id, pairs in one.kept.items()} == {
        id: set(pairs) for id, pairs in other.kept.items()
    }
