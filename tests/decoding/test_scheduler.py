"""Does every row get a slot once, in a group of its prompt, and is no slot left idle for
nothing?
"""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ste_jax.decoding.scheduler import SlotSchedule


def test_rows_of_a_prompt_share_a_group_and_refill_it() -> None:
    schedule: SlotSchedule[int] = SlotSchedule(groups=2, group_size=2)
    for row in range(5):
        schedule.add("a", row)
    schedule.add("b", 9)
    first = schedule.place()
    assert [(p.group, p.prompt, p.fill, p.rows) for p in first] == [
        (0, "a", True, ((0, 0), (1, 1))),
        (1, "b", True, ((0, 9),)),
    ]
    assert schedule.waiting == 3
    schedule.finish(0, 1)
    assert [(p.group, p.fill, p.rows) for p in schedule.place()] == [(0, False, ((1, 2),))]
    schedule.finish(1, 0)
    # No other prompt waits: the prompt with rows left takes a second group.
    assert [(p.group, p.prompt, p.fill, p.rows) for p in schedule.place()] == [
        (1, "a", True, ((0, 3), (1, 4)))
    ]


def test_a_second_wave_finds_its_prompt_where_it_was() -> None:
    schedule: SlotSchedule[int] = SlotSchedule(groups=2, group_size=1)
    schedule.add("a", 0)
    schedule.add("b", 1)
    schedule.place()
    schedule.finish(0, 0)
    schedule.finish(1, 0)
    assert schedule.idle
    schedule.add("b", 2)
    assert [(p.group, p.fill) for p in schedule.place()] == [(1, False)]


def test_after_the_caches_are_gone_a_prompt_is_filled_again() -> None:
    schedule: SlotSchedule[int] = SlotSchedule(groups=1, group_size=1)
    schedule.add("a", 0)
    schedule.place()
    schedule.finish(0, 0)
    schedule.forget()
    schedule.add("a", 1)
    assert [placement.fill for placement in schedule.place()] == [True]


@given(
    groups=st.integers(1, 4),
    size=st.integers(1, 4),
    prompts=st.lists(st.integers(0, 5), max_size=40),
    seed=st.integers(0, 1000),
)
def test_any_order_of_arrivals_and_ends(
    groups: int, size: int, prompts: list[int], seed: int
) -> None:
    schedule: SlotSchedule[int] = SlotSchedule(groups, size)
    draw = random.Random(seed)
    pending = list(enumerate(prompts))
    holds: dict[int, int] = {}
    started: list[int] = []
    for _ in range(1000):
        if not pending and schedule.idle:
            break
        for _ in range(draw.randint(0, 5)):
            if pending:
                row, prompt = pending.pop()
                schedule.add(prompt, row)
        before = {(group, slot) for group, slot, _ in schedule.running()}
        for placement in schedule.place():
            if placement.fill:
                assert not any(group == placement.group for group, _ in before)
                holds[placement.group] = placement.prompt  # type: ignore[assignment]
            assert holds[placement.group] == placement.prompt
            for slot, row in placement.rows:
                assert prompts[row] == placement.prompt
                assert (placement.group, slot) not in before
                before.add((placement.group, slot))
                started.append(row)
        running = schedule.running()
        assert {(group, slot) for group, slot, _ in running} == before
        if schedule.waiting:  # then no group is empty
            assert {group for group, _, _ in running} == set(range(groups))
        for group, slot, _ in running:
            if draw.random() < 0.5:
                schedule.finish(group, slot)
    assert sorted(started) == list(range(len(prompts)))
