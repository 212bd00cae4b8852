"""Which rows of a stage are still to be done, by which process, and when is a shard written?

The shard is the unit of work. Process 0 lists once what is missing and sends the list to all; shard
k goes to process k mod P. Rows that a shard already has are kept, only missing ones are worked on,
and the work gets one stream of rows over the borders of shards; a shard's files are written, whole,
once its last row is done. So to run again is to resume, and one more instruction costs one row's
work. Rows whose input is no longer wanted are set aside, and come back with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from ste_jax.parallel.processes import Processes
from ste_jax.run.changes import Changes
from ste_jax.run.sharded_plan import foretell, kept, plan
from ste_jax.run.sharded_work import Outputs, ShardedWork, finished
from ste_jax.system import preemption
from ste_jax.system.errors import WorkError


@dataclass
class _Shard:
    number: int
    waiting: set[str]
    rows: list[list[Any]] = field(default_factory=list)
    worked: int = 0


class _Work:
    """The shards that a process works on: the open ones, and the shard of each row."""

    def __init__(
        self, stage: ShardedWork, shards: Sequence[int], on_shard: Callable[[int, int], None]
    ) -> None:
        self._stage, self._shards, self._on_shard = stage, shards, on_shard
        self._open: dict[int, _Shard] = {}
        self._home_of: dict[str, int] = {}

    def stream(self) -> Iterator[Any]:
        """Yields the rows to work on. A shard that only loses rows is written in passing."""
        for number in self._shards:
            inputs = self._stage.inputs(number)
            wanted = {row.id for row in inputs}
            done, rows = kept(self._stage, number, wanted)
            shard = _Shard(number, wanted - done, rows, len(wanted - done))
            if not shard.waiting:
                self._write(shard)
                continue
            self._open[number] = shard
            self._home_of |= dict.fromkeys(shard.waiting, number)
            yield from [row for row in inputs if row.id in shard.waiting]

    def take(self, row: Any, outputs: Outputs) -> None:
        """Take the output rows of an input row; after a shard's last row, write the shard."""
        shard = self._open[self._home_of.pop(row.id)]
        for rows, new in zip(shard.rows, outputs, strict=True):
            rows.extend(new)
        shard.waiting.discard(row.id)
        if not shard.waiting:
            self._write(self._open.pop(shard.number))

    def end(self) -> None:
        """All is written."""
        assert not self._open, f"{self._stage.name} left shards {sorted(self._open)} unfinished"

    def _write(self, shard: _Shard) -> None:
        # a kill between two tables leaves inputs with rows in one of them: they are asked again
        _set_aside(self._stage, shard)
        for table, rows in zip(self._stage.outputs, shard.rows, strict=True):
            table.write(shard.number, rows)
        self._on_shard(shard.number, shard.worked)


def run_sharded(
    stage: ShardedWork,
    work: Callable[[Iterator[Any]], Iterable[tuple[Any, Outputs]]],
    processes: Processes,
    on_shard: Callable[[int, int], None] = lambda shard, rows: None,
    status: Callable[[], str] = lambda: "",
    changes: Changes | None = None,
) -> bool:
    """Do the missing work of a stage; returns whether there was any.

    `work` takes the stream of input rows and yields (input row, rows for each output table) in any
    order. `on_shard(shard, rows worked on)` is called after a shard is written; `status()` is shown
    on the progress bar. All processes have finished their shards when this returns.

    Raises:
      WorkError: after all have finished, a shard is not there for process 0 to see.
    """
    changes = changes or Changes()
    if changes.dry:
        foretell(stage, changes)
        return False
    missing = processes.from_first(f"plan {stage.name}", lambda: plan(stage, changes))
    mine = [(shard, todo) for shard, todo in missing if shard % processes.count == processes.index]
    total = sum(todo for _, todo in mine)
    here = _Work(stage, [shard for shard, _ in mine], on_shard)
    with tqdm(total=total, desc=stage.name, unit="row", disable=None if total else True) as bar:
        # a stage with nothing to ask never begins its work, and so loads no model
        for row, outputs in work(here.stream()) if total else _exhausted(here.stream()):
            here.take(row, outputs)
            bar.set_postfix_str(status(), refresh=False)
            bar.update()
            preemption.poll()
    here.end()
    processes.barrier(f"end {stage.name}")
    processes.from_first(f"seen {stage.name}", lambda: _see_all(stage))
    return bool(missing)


def _see_all(stage: ShardedWork) -> None:
    """Wait until process 0 sees every shard: a network file system may show a file late, and a
    directory that is not shared never does."""
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
    """Read the stream to its end, so that it writes the shards that only lose rows."""
    for row in rows:
        raise AssertionError(f"the plan did not know of row {row.id}")
    yield from ()


def _set_aside(stage: ShardedWork, shard: _Shard) -> None:
    """Set aside the rows that a shard is about to lose."""
    there = finished(stage, shard.number)
    lost = stage.done(there) - stage.done(shard.rows)
    if not lost:
        return
    aside = finished(stage, shard.number, stage.unwanted)
    older = stage.of(stage.done(aside) - lost, aside)
    for table, old, new in zip(stage.unwanted, older, stage.of(lost, there), strict=True):
        table.write(shard.number, old + new)
