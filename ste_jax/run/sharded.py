"""Which rows of a stage are still to be done, by whom, and when is a shard written?

The shard is the unit of work. Process 0 lists once what is missing and tells all; shard k goes to
process k mod P. The rows that a shard already holds are kept, only missing ones are worked on, and
the work sees one stream over the borders of shards; a shard's files are written, whole, once its
last row is done. Running again is therefore resuming, and an instruction more is one row's work.
Rows whose input is no longer wanted are set aside, and come back with it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar

from etils import epath
from tqdm import tqdm

from ste_jax.errors import WorkError
from ste_jax.parallel.processes import Processes
from ste_jax.run import marks
from ste_jax.run.layout import Table
from ste_jax.system import files, preemption

In = TypeVar("In")
Outputs = Sequence[list[Any]]


@dataclass(frozen=True, kw_only=True)
class ShardedStage:
    """A stage that works shard by shard.

    `inputs(shard)` gives the rows to work on; `outputs` are the tables it writes; `input_of(table
    index, row)` names the input row (its id) that an output row came from. Every input must give at
    least one row in some table. If they belong `together`, it gives one in the last table, and what
    the others hold of it is made with that alone. `derived` was made of the outputs, and goes when
    they are to change. `ready` is called before anything made under another fingerprint makes room,
    and raises what would stop the work at its first row.
    """

    name: str
    print_: str
    home: epath.Path
    inputs: Callable[[int], list[Any]]
    outputs: Sequence[Table[Any]]
    input_of: Callable[[int, Any], str]
    derived: Sequence[epath.Path] = ()
    together: bool = False
    ready: Callable[[], object] = lambda: None

    @property
    def mark(self) -> epath.Path:
        """Where the fingerprint of what is there is remembered."""
        return self.home / f"{self.name}.json"

    @property
    def unwanted(self) -> list[Table[Any]]:
        """The tables' rows, under today's fingerprint, whose inputs were wanted once."""
        home = marks.aside(self.mark, self.print_) / "unwanted"
        return [dataclasses.replace(t, directory=home / t.directory.name) for t in self.outputs]

    def of(self, inputs: Set[str], rows: Outputs) -> list[list[Any]]:
        """The rows that came from some inputs, by id."""
        return [
            [row for row in of_table if self.input_of(index, row) in inputs]
            for index, of_table in enumerate(rows)
        ]

    def done(self, rows: Outputs) -> set[str]:
        """The inputs, by id, of which all is there."""
        ids = [{self.input_of(i, row) for row in of_table} for i, of_table in enumerate(rows)]
        return ids[-1] if self.together else set.union(*ids)


@dataclass
class _Shard:
    number: int
    waiting: set[str]
    rows: list[list[Any]] = field(default_factory=list)


def run_sharded(
    stage: ShardedStage,
    work: Callable[[Iterator[Any]], Iterable[tuple[Any, Outputs]]],
    processes: Processes,
    on_shard: Callable[[int, int], None] = lambda shard, rows: None,
    status: Callable[[], str] = lambda: "",
) -> bool:
    """Do what is missing of a stage; True if anything was.

    `work` takes the stream of input rows and yields (input row, rows for each output table) in any
    order. `on_shard(shard, rows worked on)` is called after a shard is written; `status()` is shown
    on the progress bar. All processes have finished their shards when this returns.

    Raises:
      WorkError: after all have finished, a shard is not there for process 0 to see.
    """
    plan = processes.from_first(f"plan {stage.name}", lambda: _plan(stage))
    mine = [(shard, todo) for shard, todo in plan if shard % processes.count == processes.index]
    open_: dict[int, _Shard] = {}
    home_of: dict[str, int] = {}
    total = sum(todo for _, todo in mine)

    def write(shard: _Shard, worked: int) -> None:
        # a kill between two tables leaves inputs whose rows are in one alone: done, or asked again
        _set_aside(stage, shard)
        for table, rows in zip(stage.outputs, shard.rows, strict=True):
            table.write(shard.number, rows)
        on_shard(shard.number, worked)

    def stream() -> Iterator[Any]:
        for number, _ in mine:
            inputs = stage.inputs(number)
            wanted = {row.id for row in inputs}
            done, kept = _kept(stage, number, wanted)
            shard = _Shard(number, wanted - done, kept)
            if not shard.waiting:
                write(shard, 0)
                continue
            open_[number] = shard
            todo = [row for row in inputs if row.id in shard.waiting]
            counts[number] = len(todo)
            for row in todo:
                home_of[row.id] = number
            yield from todo

    counts: dict[int, int] = {}
    with tqdm(total=total, desc=stage.name, unit="row", disable=None if total else True) as bar:
        rows_to_do = stream()
        # a stage with nothing to ask never begins its work, and so loads no model
        for row, outputs in work(rows_to_do) if total else _exhausted(rows_to_do):
            shard = open_[home_of.pop(row.id)]
            for rows, new in zip(shard.rows, outputs, strict=True):
                rows.extend(new)
            shard.waiting.discard(row.id)
            bar.set_postfix_str(status(), refresh=False)
            bar.update()
            if not shard.waiting:
                write(open_.pop(shard.number), counts[shard.number])
            preemption.poll()
    assert not open_, f"{stage.name} ended with shards {sorted(open_)} unfinished"
    processes.barrier(f"end {stage.name}")
    processes.from_first(f"seen {stage.name}", lambda: _see_all(stage))
    return bool(plan)


def _see_all(stage: ShardedStage) -> None:
    """A network file system may show a file late; a directory that is not shared never does."""
    deadline = time.monotonic() + _SEEN_WITHIN_S
    for table in stage.outputs:
        for shard in range(table.shards):
            while not table.done(shard):
                if time.monotonic() > deadline:
                    raise WorkError(
                        f"{stage.name}: {table.path(shard)} was written by no process that shares "
                        f"this directory; give all processes the same one"
                    )
                time.sleep(0.5)


_SEEN_WITHIN_S = 60.0


def _exhausted(rows: Iterator[Any]) -> Iterator[tuple[Any, Outputs]]:
    """Let the stream write the shards that only lose rows."""
    for row in rows:
        raise AssertionError(f"the plan did not know of row {row.id}")
    yield from ()


def _plan(stage: ShardedStage) -> list[tuple[int, int]]:
    """(shard, rows to do) of every shard that is not as it should be. Process 0 only."""
    shards = range(stage.outputs[0].shards)
    wanted = [{row.id for row in stage.inputs(number)} for number in shards]
    places = [table.directory for table in stage.outputs]
    other = marks.marked(stage.mark) != stage.print_
    if other and any(wanted) and any(place.exists() for place in places):
        stage.ready()
    marks.change_over(stage.mark, places, stage.print_)
    plan = []
    for number in shards:
        done = stage.done(_finished(stage, number))
        whole = all(table.done(number) for table in stage.outputs)
        if done != wanted[number] or not whole:
            plan.append((number, len(wanted[number] - _kept(stage, number, wanted[number])[0])))
    for path in stage.derived if plan else ():
        files.forget(path)
    return plan


def _kept(stage: ShardedStage, number: int, wanted: set[str]) -> tuple[set[str], list[list[Any]]]:
    """Of which wanted inputs all is there already or was set aside, and their rows."""
    there = _finished(stage, number)
    done = wanted & stage.done(there)
    rows = stage.of(done, there)
    if done != wanted:
        aside = _finished(stage, number, stage.unwanted)
        back = (wanted - done) & stage.done(aside)
        rows = [one + other for one, other in zip(rows, stage.of(back, aside), strict=True)]
        done |= back
    return done, rows


def _set_aside(stage: ShardedStage, shard: _Shard) -> None:
    """Keep what a shard that is about to be written holds no more."""
    there = _finished(stage, shard.number)
    lost = stage.done(there) - stage.done(shard.rows)
    if not lost:
        return
    aside = _finished(stage, shard.number, stage.unwanted)
    older = stage.of(stage.done(aside) - lost, aside)
    for table, old, new in zip(stage.unwanted, older, stage.of(lost, there), strict=True):
        table.write(shard.number, old + new)


def _finished(
    stage: ShardedStage, number: int, tables: Sequence[Table[Any]] = ()
) -> list[list[Any]]:
    """The rows of a shard in every table (those of the stage unless given); none of a table whose
    file is not there."""
    tables = tables or stage.outputs
    if stage.together and not all(table.done(number) for table in tables):
        return [[] for _ in tables]
    return [table.read(number) for table in tables]
