"""Is a line about what is made again true, plain and in one piece?"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.config.identity import Identity, fingerprint
from ste_jax.run import marks
from ste_jax.run.changes import TEXT_OF, Changes, RecipeStep, shown
from ste_jax.system.terminal import harmless

JUDGED = RecipeStep(
    title="annotate 2",
    takes=("pair", "prompts for annotate 2"),
    asks="sft 1",
    model="the judge of iteration 1",
)


def made(version: int = 1, model: str = "abc/f32", inputs: Any = None, **knobs: Any) -> Identity:
    knobs = {"annotate.samples": 15, "judge.force_text": "", **knobs}
    return fingerprint("annotate", version, knobs, model=model, inputs=inputs, named=knobs)


def why(there: Identity, now: Identity, **given: Any) -> str:
    return Changes(**given).why(JUDGED, there, now)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (made(**{"annotate.samples": 8}), "annotate.samples was 15 and is 8"),
        (made(**{"judge.force_text": "\n\n[["}), r'judge.force_text was empty and is "\n\n[["'),
        (made(**{"judge.force_text": None}), "judge.force_text was empty and is none"),
        (made(version=2), "this version makes it otherwise"),
        (made(model="xyz/f32"), "the judge of iteration 1 is another now"),
        (made(inputs=["a"]), "what it is made of has changed"),
        (
            made(model="endpoint/big"),
            "big behind an endpoint is asked, and not the judge of iteration 1",
        ),
        (
            made(version=2, model="xyz/f32", **{"annotate.samples": 8}),
            "annotate.samples was 15 and is 8, and this version makes it otherwise, and the judge "
            "of iteration 1 is another now",
        ),
    ],
)
def test_what_is_another_is_named(now: Identity, reason: str) -> None:
    assert why(made(), now) == reason


def test_the_first_three_knobs_are_named_and_the_others_counted() -> None:
    old, new = ({f"k{n}": n + more for n in range(5)} for more in (0, 10))
    line = why(made(**old), made(**new))
    assert line == "k0 was 0 and is 10, k1 was 1 and is 11, k2 was 2 and is 12 and 2 more"


def test_of_two_reasons_that_say_the_same_one_is_said() -> None:
    dtypes = made(model="abc/bf16", **{"decoding.dtype": "b"})
    there = made(**{"decoding.dtype": "f"})
    assert why(there, dtypes) == 'decoding.dtype was "f" and is "b"'
    text = f"{TEXT_OF}roles.judge.template"
    old, new = ({"roles.judge.template": name, text: name} for name in "ab")
    assert why(made(**old), made(**new)) == 'roles.judge.template was "a" and is "b"'
    assert why(made(**{text: "a"}), made(**{text: "b"})) == f"{text} has changed"
    others = made(model="xyz/f32", inputs=["a"])
    assert why(made(), others, redone={"sft 1"}) == (
        "sft 1 is made again, and what it is made of has changed"
    )
    assert why(made(), others, redone={"pair"}) == (
        "pair is made again, and the judge of iteration 1 is another now"
    )


def test_a_mark_that_is_lost_or_was_never_finished_says_so() -> None:
    assert why(Identity(""), made()).startswith("its mark is lost")
    half = Identity(marks.BEING_WRITTEN)
    assert why(half, made()) == "it was stopped while it was being written"


def test_a_mark_of_an_earlier_version_is_explained_by_the_config_that_lay_there() -> None:
    before = {"annotate": {"samples": 4}, "judge": {"force_text": "", "other": 1}}
    assert why(Identity("old"), made(), before=before) == "annotate.samples was 4 and is 15"
    general = "its knobs, its inputs, its model or its version are others now"
    for nothing in ({}, {"annotate": {"samples": 15}}, {"annotate": 3}):
        assert why(Identity("old"), made(), before=nothing) == general


def test_another_generator_is_named_once_and_for_its_iteration_alone() -> None:
    knob = "annotate.generator.2"
    before = {"annotate": {"generator": {"2": "big"}}}
    assert (
        why(Identity("old"), made(**{knob: ""}), before=before) == f'{knob} was "big" and is empty'
    )
    before = {"annotate": {"generator": {"1": "big"}, "samples": 8}}
    now = made(**{knob: ""})
    assert why(Identity("old"), now, before=before) == "annotate.samples was 8 and is 15"
    there = made(model="endpoint/big-one", **{knob: "big"})
    assert why(there, now) == f'{knob} was "big" and is empty'


def test_no_knob_is_named_where_none_has_changed() -> None:
    before = {"annotate": {"samples": 4}}
    same = Identity(str(made()))
    assert why(same, made(), before=before, redone={"pair"}) == "pair is made again"


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x, max_size=3)))
def test_a_value_is_shown_in_one_short_line(value: Any) -> None:
    text = shown(value)
    assert 0 < len(text) <= 60 and len(harmless(f"x{text}x").splitlines()) == 1


def test_a_start_says_a_line_on_standard_error_and_in_its_log(capsys) -> None:
    events: list[dict[str, Any]] = []
    changes = Changes(log=lambda event, **values: events.append({"event": event, **values}))
    changes.again(JUDGED, "9 prompts are judged again", made(), made(version=2), "It lies there")
    line = (
        "annotate 2: 9 prompts are judged again, since this version makes it otherwise. It lies "
        "there"
    )
    assert capsys.readouterr() == ("", f"{line}\n")
    assert events == [{"event": "made_again", "step": "annotate 2", "line": line}]
    changes.dry = True
    changes.again(JUDGED, "9 prompts are judged again", made(), made(version=2))
    assert capsys.readouterr() == ("", "") and len(events) == 1
    (planned,) = changes.planned
    assert planned.line == line.removesuffix(". It lies there")
    assert planned.why == "this version makes it otherwise" and planned.asks


def test_what_is_made_as_a_whole_asks_where_it_may_come_out_as_another() -> None:
    def foretold(there: Identity, had: bool = True, **given: Any) -> tuple[str, bool]:
        changes = Changes(dry=True, **given)
        changes.foretell(JUDGED, "the judge is trained", there, made(), had)
        (planned,) = changes.planned
        assert (planned.fate == "done") == (JUDGED.title not in changes.redone)
        return planned.fate, planned.asks

    assert foretold(made()) == ("done", False)
    assert foretold(made(version=2)) == ("again", True)
    assert foretold(made(), redone={"pair"}) == ("goes on", False)
    assert foretold(made(), redone={"pair"}, others={"pair"}) == ("again", True)
    assert foretold(Identity(""), had=False) == ("first", False)
    changes = Changes(dry=True)
    changes.foretell(JUDGED, "the judge is trained", made(version=2), made(), had=False)
    assert changes.others == {JUDGED.title}  # what was made with the earlier one does not fit
