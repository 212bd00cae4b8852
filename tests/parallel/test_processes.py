"""Do processes meet where they mean to? (Two real ones meet in `tests/multihost`.)"""

from __future__ import annotations

import pytest

from ste_jax.parallel import processes
from ste_jax.parallel.processes import Processes, joined
from ste_jax.system import preemption
from ste_jax.system.errors import Preempted, WorkError


class Store:
    """The coordination service as process 0 of two sees it: the other says `answer`."""

    def __init__(self, answer: str | None) -> None:
        self.answer = answer
        self.held: dict[str, str] = {}

    def key_value_set(self, key: str, value: str) -> None:
        if key in self.held:
            raise RuntimeError("ALREADY_EXISTS")
        self.held[key] = value
        if self.answer is not None and key.endswith("/0"):
            self.held[f"{key.removesuffix('/0')}/1"] = self.answer

    def blocking_key_value_get(self, key: str, wait_ms: int) -> str:
        if key not in self.held:
            raise RuntimeError("DEADLINE_EXCEEDED")
        return self.held[key]


def two(monkeypatch: pytest.MonkeyPatch, answer: str | None) -> Store:
    store = Store(answer)
    monkeypatch.setattr(processes, "_client", lambda: store)
    return store


def test_a_process_that_joined_none_is_alone() -> None:
    assert joined() == Processes(index=0, count=1)
    assert joined().gather("anything", {"x": 1}) == [{"x": 1}]


def test_every_meeting_has_a_place_of_its_own_whoever_calls_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = two(monkeypatch, "7")
    for _ in range(2):  # an object of its own each time, as `joined` gives one
        assert Processes(count=2).gather("read", 5) == [5, 7]
    assert sum(key.endswith("read/0") for key in store.held) == 2


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    two(monkeypatch, None)
    with pytest.raises(WorkError, match="process 1 did not reach 'read'"):
        Processes(count=2, timeout_s=-1.0).barrier("read")


def test_a_process_that_waits_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    two(monkeypatch, None)
    monkeypatch.setattr(preemption, "requested", lambda: True)
    with pytest.raises(Preempted):
        Processes(count=2).barrier("read")


def test_one_that_comes_when_another_has_stopped_waiting_stops_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = two(monkeypatch, None)
    monkeypatch.setattr(processes, "_meetings", iter((1, 1)))  # both are at the same meeting
    monkeypatch.setattr(preemption, "requested", lambda: True)
    with pytest.raises(Preempted, match=r"^asked to stop"):
        Processes(count=2).gather("read", True)
    monkeypatch.setattr(preemption, "requested", lambda: False)
    with pytest.raises(Preempted, match=r"^process 0 stopped: asked to stop"):
        Processes(index=1, count=2).gather("read", True)
    assert {"ste/1/read/0", "ste/1/read/1"} < store.held.keys()


def test_one_that_is_asked_to_stop_goes_on_where_all_others_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = two(monkeypatch, None)

    def requested() -> bool:  # meanwhile the other comes, finds this one here and goes on
        store.held |= {"ste/1/read/1": "7", "ste/1/read/outcome": "null"}
        return True

    monkeypatch.setattr(processes, "_meetings", iter((1,)))
    monkeypatch.setattr(preemption, "requested", requested)
    assert Processes(count=2).gather("read", 5) == [5, 7]


def test_an_error_of_the_first_is_not_lost_where_another_has_stopped_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = two(monkeypatch, "null")
    stopped = '{"process": 1, "kind": "Preempted", "error": "asked to stop"}'
    monkeypatch.setattr(processes, "_meetings", iter((1, 2)))
    store.held |= {f"ste/{number}/make/outcome": stopped for number in (1, 2)}
    with pytest.raises(Preempted, match="process 1 stopped"):
        Processes(count=2).from_first("make", lambda: 1)
    with pytest.raises(ZeroDivisionError):
        Processes(count=2).from_first("make", lambda: 1 // 0)
