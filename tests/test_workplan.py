"""The shard is the unit of work: nothing is done twice, nothing is lost, whatever stops it."""

from __future__ import annotations

import pytest
from etils import epath

from ste_jax import workplan
from ste_jax.distributed import Processes
from ste_jax.errors import WorkError
from ste_jax.records import DroppedPair, Label, shard_of
from ste_jax.rundir import Table
from ste_jax.workplan import ShardedStage, run_sharded

SHARDS = 4


class Stop(Exception):
    pass


def row(name: str) -> DroppedPair:
    return DroppedPair(id=name, reason="r", text="t")


class Bench:
    """A stage that labels rows, and remembers which it was given."""

    def __init__(self, root):
        self.root = epath.Path(root)
        self.inputs = [row(f"row-{n}") for n in range(20)]
        self.first = Table(self.root / "first", DroppedPair, SHARDS)
        self.last = Table(self.root / "last", Label, SHARDS)
        self.worked: list[str] = []
        self.print_ = "one"
        self.stop_after = 10**9

    def run(self, processes=None):
        stage = ShardedStage(
            name="label",
            print_=self.print_,
            home=self.root,
            inputs=lambda shard: [r for r in self.inputs if shard_of(r.id, SHARDS) == shard],
            outputs=(self.first, self.last),
            input_of=lambda table, r: r.id,
        )
        return run_sharded(stage, self.work, processes or Processes())

    def work(self, rows):
        waiting = []
        for each in rows:
            waiting.append(each)
            if len(waiting) == 3:  # out of order, over the borders of shards
                yield from map(self.label, reversed(waiting))
                waiting = []
        yield from map(self.label, waiting)

    def label(self, each):
        if len(self.worked) == self.stop_after:
            raise Stop
        self.worked.append(each.id)
        odd = int(each.id.split("-")[1]) % 2
        made = Label(id=each.id, category="c", difficulty=None, failure=None, text="")
        return each, ([row(each.id)], []) if odd else ([], [made])

    def ids(self):
        return sorted([r.id for r in self.first.rows()] + [r.id for r in self.last.rows()])


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_all_rows_once_and_nothing_the_second_time(bench):
    assert bench.run()
    assert bench.ids() == sorted(r.id for r in bench.inputs)
    assert not bench.run()
    assert len(bench.worked) == 20


def test_rows_in_a_shard_are_ordered_by_id(bench):
    bench.run()
    for shard in range(SHARDS):
        ids = [r.id for r in bench.last.read(shard)]
        assert ids == sorted(ids)


@pytest.mark.parametrize("after", [0, 1, 7, 13, 19])
def test_a_stop_loses_at_most_the_open_shards(bench, after):
    bench.stop_after = after
    with pytest.raises(Stop):
        bench.run()
    finished = len(bench.ids())
    bench.stop_after, bench.worked = 10**9, []
    bench.run()
    assert bench.ids() == sorted(r.id for r in bench.inputs)
    assert len(bench.worked) == 20 - finished


def test_one_more_input_is_one_more_row_of_work(bench):
    bench.run()
    bench.worked = []
    bench.inputs.append(row("row-99"))
    bench.run()
    assert bench.worked == ["row-99"]
    assert "row-98" not in bench.ids() and "row-99" in bench.ids()


def test_an_input_that_went_takes_its_rows_along(bench):
    bench.run()
    gone = bench.inputs.pop(3)
    bench.worked = []
    bench.run()
    assert bench.worked == []
    assert gone.id not in bench.ids() and len(bench.ids()) == 19


def test_another_fingerprint_begins_anew(bench):
    bench.run()
    bench.print_, bench.worked = "two", []
    bench.run()
    assert len(bench.worked) == 20


def test_a_shard_without_its_last_table_is_not_there(bench):
    bench.run()
    bench.last.path(2).unlink()
    bench.worked = []
    bench.run()
    assert sorted(bench.worked) == sorted(r.id for r in bench.inputs if shard_of(r.id, SHARDS) == 2)
    assert bench.ids() == sorted(r.id for r in bench.inputs)


def test_shards_are_divided_over_processes(bench, monkeypatch):
    class Alone(Processes):
        """One of two processes whose meetings are let pass."""

        def gather(self, name, value):
            return [value] * self.count

        def from_first(self, name, make):
            return make()

    monkeypatch.setattr(workplan, "_SEEN_WITHIN_S", 0.0)
    with pytest.raises(WorkError, match=r"00000-of-00004\.parquet was written by no process"):
        Bench.run(bench, Alone(index=1, count=2))
    assert [shard for shard in range(SHARDS) if bench.last.done(shard)] == [1, 3]
    Bench.run(bench, Alone(index=0, count=2))
    assert bench.ids() == sorted(r.id for r in bench.inputs)
