"""What was cut off by length is not learnt as if it were an end."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.config.schema import CurateKnobs, DpoKnobs
from ste_jax.records import Judgment, Prompt
from ste_jax.stages.curate import curate, training_examples
from ste_jax.stages.ends import End, end_of_verdict, ended, never
from ste_jax.stages.preferences import prefer, preference_examples
from ste_jax.tasks import PAIRWISE
from ste_jax.tasks.pairwise import parse_verdict

REASONED = "Both are short.\nThe first is right.\n\n[[A]]"
RAMBLING = REASONED + "\n\nLet me say more about why the"


def judgment(text: str, reason: str = "length", sample: int = 0, **changes: object) -> Judgment:
    """A judgment whose token ids are the letters of its text."""
    made = Judgment(
        id=f"j{sample}",
        prompt_id="p",
        judge="m",
        iteration=1,
        sample=sample,
        text=text,
        token_ids=tuple(map(ord, text)),
        verdict=parse_verdict(text, reason).verdict,
        failure=None,
        forced=False,
        finish_reason=reason,
        free_tokens=len(text),
    )
    return dataclasses.replace(made, **changes)


def letters(ids: tuple[int, ...], text: str) -> tuple[int, ...] | None:
    """A `Cut` of ids that are letters."""
    return ids[: len(text)] if "".join(map(chr, ids)).startswith(text) else None


PROMPT = Prompt(id="p", pair_id="x", order="ab", messages=(), label="A")


def test_a_cut_off_text_ends_behind_the_line_of_its_verdict() -> None:
    assert ended(judgment(RAMBLING), PAIRWISE, letters) == End(REASONED, tuple(map(ord, REASONED)))
    # where it was cut off just there, nothing goes; and nothing of what the judge ended itself
    for text, reason in ((REASONED, "length"), (RAMBLING, "stop")):
        assert ended(judgment(text, reason), PAIRWISE, letters) == End(text, tuple(map(ord, text)))


def test_ids_that_do_not_end_there_are_no_end_and_text_alone_is_cut_anywhere() -> None:
    assert ended(judgment(RAMBLING), PAIRWISE, never) is None
    assert ended(judgment(RAMBLING, token_ids=()), PAIRWISE, never) == End(REASONED, ())


def test_the_mark_that_the_template_wrote_is_not_among_the_ids() -> None:
    written = "Hm. [[B]]?\n</think>\n\n" + REASONED
    ids = tuple(map(ord, written + "\nand"))
    whole = judgment(f"<think>\n{written}\nand", token_ids=ids)
    end = ended(whole, PAIRWISE, exactly)
    assert end == End(f"<think>\n{written}", tuple(map(ord, written)))


def exactly(ids: tuple[int, ...], text: str) -> tuple[int, ...] | None:
    return letters(ids, text) if len(text) <= len(ids) else None


@pytest.mark.parametrize("before", ["[[A]] x\n", "[[A]]\n", "> [[A]]\n", '"[[A]]"\n', "- "])
def test_the_end_is_found_in_linear_time(before: str) -> None:
    text = before * (200_000 // len(before)) + "\n\n[[A]]\nmore"
    began = time.process_time()
    end = end_of_verdict(text, "A", PAIRWISE)
    assert time.process_time() - began < 2
    assert end is not None and parse_verdict(text[:end], "length").verdict == "A"


def test_a_verdict_in_the_middle_of_the_last_sentence_is_no_end() -> None:
    assert end_of_verdict("One is short. [[A]] is what I would", "A", PAIRWISE) is None
    assert ended(judgment("So [[A]] it is, bec", verdict="A"), PAIRWISE, letters) is None


def test_a_forced_verdict_is_an_end() -> None:
    forced = judgment("It is sho\n\nFinal verdict: [[A]]", forced=True, verdict="A")
    assert ended(forced, PAIRWISE, never) == End(forced.text, forced.token_ids)


@given(
    st.lists(st.sampled_from(["Word.", "a b", "[[A]]", "[[B]]", "> [[B]]", "`[[B]]`", "", "```"])),
    st.text(alphabet="ab ]", max_size=6),
)
def test_what_is_learnt_is_a_beginning_with_the_same_verdict(lines: list[str], rest: str) -> None:
    text = "\n".join([*lines, rest])
    whole = judgment(text)
    end = ended(whole, PAIRWISE, letters)
    if whole.verdict is None or end is None:
        return
    assert text.startswith(end.text) and end.token_ids == tuple(map(ord, end.text))
    assert parse_verdict(end.text).verdict == whole.verdict
    assert "]]" in end.text.splitlines()[-1]


def test_curation_learns_the_end_or_counts_it() -> None:
    rows = [judgment(RAMBLING)]
    found = curate(PAIRWISE, [PROMPT], rows, CurateKnobs(balance=False), letters)
    assert found.kept == {"p": "j0"}
    (row,) = training_examples(PAIRWISE, [PROMPT], rows, lambda _: True, letters)
    assert (row.completion, row.completion_ids) == (REASONED, tuple(map(ord, REASONED)))
    (whole,) = training_examples(PAIRWISE, [PROMPT], [judgment(RAMBLING, "stop")], lambda _: True)
    assert row.id != whole.id  # another row: what was trained on the whole is trained anew
    lost = curate(PAIRWISE, [PROMPT], rows, CurateKnobs(balance=False))
    assert (lost.kept, lost.dropped) == ({}, {"cut_off": 1})


def test_a_later_sample_stands_in_for_one_that_cannot_be_cut() -> None:
    rows = [judgment(RAMBLING), judgment(REASONED, "stop", sample=1)]
    assert curate(PAIRWISE, [PROMPT], rows, CurateKnobs(balance=False)).kept == {"p": "j1"}


def test_agreement_is_of_all_that_were_drawn() -> None:
    rows = [judgment(REASONED, "stop", sample=n) for n in range(3)]
    rows += [judgment("Hm.", "stop", sample=3), judgment("Well, the", sample=4)]
    for threshold, kept in ((0.6, True), (0.61, False)):
        knobs = CurateKnobs(balance=False, min_agreement=threshold)
        assert bool(curate(PAIRWISE, [PROMPT], rows, knobs).kept) == kept


def test_dpo_prefers_a_judgment_that_ends_and_leaves_the_failed_one_cut_off() -> None:
    rows = [judgment(RAMBLING), judgment("No idea what", sample=1)]
    knobs = DpoKnobs()
    found = prefer(PAIRWISE, [PROMPT], rows, knobs, balance=False, cut=letters)
    (row,) = preference_examples(PAIRWISE, [PROMPT], rows, found.kept, letters)
    assert (row.completion, row.completion_ids) == (REASONED, tuple(map(ord, REASONED)))
    assert (row.rejected, row.rejected_cut_off) == ("No idea what", True)
    lost = prefer(PAIRWISE, [PROMPT], rows, knobs, balance=False)
    assert (lost.kept, lost.prompts_dropped) == ({}, {"cut_off": 1})


@pytest.mark.parametrize(("text", "cut_off"), [("..\n[[B]]", False), ("..\nno [[", True)])
def test_a_failed_one_with_a_forced_verdict_was_ended(text: str, cut_off: bool) -> None:
    rows = [judgment(REASONED, "stop"), judgment(text, sample=1, forced=True)]
    found = prefer(PAIRWISE, [PROMPT], rows, DpoKnobs(), balance=False)
    (row,) = preference_examples(PAIRWISE, [PROMPT], rows, found.kept)
    assert row.rejected_cut_off == cut_off
