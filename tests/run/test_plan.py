"""Is the plan of a start short, and does it name what goes and why?"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.config.differences import Difference
from ste_jax.run.changes import Planned
from ste_jax.run.plan import Plan, gathered

DONE = [Planned(title=title, fate="done") for title in ("intake", "label", "evaluate 0")]


@pytest.mark.parametrize(
    ("titles", "said"),
    [
        (["intake", "labelled same-task", "labelled other-task"], "intake, labelled sets"),
        (["evaluate 0", "evaluate 0 on same-task", "annotate 1"], "evaluate 0, annotate 1"),
        (["evaluate 0", "evaluate 1", "evaluate 2", "evaluate 4"], "evaluate 0-2 and 4"),
        (["prompt set of annotate 1", "annotate 1", "annotate 2"], "annotate 1-2"),
        (["evaluate 1 after sft", "evaluate 1"], "evaluate after sft 1, evaluate 1"),
        (["annotate more 1", "the whole run"], "annotate more 1, the whole run"),
    ],
)
def test_titles_are_gathered_by_step(titles: list[str], said: str) -> None:
    assert gathered(titles) == said


@given(st.sets(st.integers(0, 30)))
def test_no_number_is_lost_where_steps_are_gathered(numbers: set[int]) -> None:
    said = gathered([f"sft {number}" for number in sorted(numbers)]).removeprefix("sft ")
    found: set[int] = set()
    for span in said.split(" and ") if said else []:
        first, _, last = span.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == numbers


def test_of_a_finished_run_one_line_is_said() -> None:
    assert Plan("runs/a", DONE).lines() == ["nothing is left to do"]


def test_what_is_done_is_one_line_and_each_other_step_another() -> None:
    steps = [
        *DONE,
        Planned(title="prompt set of annotate 1", fate="done"),
        Planned(title="annotate 1", fate="goes on", what="2 more prompts are judged"),
        Planned(title="sft 1", fate="first", what="the judge is trained, for the first time"),
    ]
    assert Plan("runs/a", steps).lines() == [
        "done: intake, label, evaluate 0",
        "annotate 1: 2 more prompts are judged",
        "sft 1: the judge is trained, for the first time",
    ]
    assert not Plan("runs/a", steps).asking


@pytest.mark.parametrize(
    ("titles", "within"),
    [
        (["label", "annotate 2"], True),
        (["label", "iteration 2"], True),
        (["all other steps"], True),
        (["label", "annotate 1"], False),
        (["label", "iteration 1"], False),
        (["annotate 2"], False),
    ],
)
def test_a_plan_is_within_steps_that_were_named_before(titles: list[str], within: bool) -> None:
    steps = [
        *DONE[:1],
        Planned(title="label", fate="again", what="..", asks=True),
        Planned(title="prompt set of annotate 2", fate="again", what=".."),
    ]
    assert Plan("runs/a", steps).is_within(titles) is within


def test_knobs_that_differ_come_first_and_the_way_back_with_them() -> None:
    differ = [Difference("annotate.samples", 3, 15), Difference("pair.generator", "big", None)]
    assert Plan("runs/a", DONE, differ).lines() == [
        "2 knobs differ from those that runs/a was last run with:",
        "  annotate.samples was 3 and is 15",
        '  pair.generator was "big" and is none',
        "  (to go on under the run's own: ste run runs/a)",
        "nothing is left to do",
    ]
    many = [Difference(f"k{number}", 0, 1) for number in range(23)]
    lines = Plan("runs/a", DONE, many).lines()
    assert lines[-3] == "  and 3 more" and len(lines) == 1 + 20 + 1 + 1 + 1


def test_the_knob_at_the_root_is_named_and_not_what_follows_from_it() -> None:
    why = "finetune.learning_rate was 0.0003 and is 0.0001"
    steps = [
        Planned(title="sft 1", fate="again", what="..", why=why, asks=True),
        Planned(title="evaluate 1", fate="again", what="..", asks=True),
        Planned(title="evaluate 1 on same-task", fate="again", what="..", asks=True),
        Planned(title="curate 2", fate="again", what=".."),
    ]
    said = f"finished work is set aside (sft 1, evaluate 1), since {why}"
    assert Plan("runs/a", steps).consequence() == said
    follow = [Planned(title="intake", fate="again", what="..", why="pool.limit was 30 and is 0")]
    said = "finished work may be set aside (evaluate 1), since pool.limit was 30 and is 0"
    assert Plan("runs/a", [*follow, *steps[1:3]]).consequence() == said
