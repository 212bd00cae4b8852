"""Which rows of a stage are still to be done, by which process, and when is a shard written?

The shard is the unit of work. Process 0 lists once what is missing and sends the list to all; shard
k goes to process k mod P. Rows that a shard already has are kept, only missing ones are worked on,
and the work gets one stream of rows over the borders of shards; a shard's files are written, whole,
once its last row is done, and until then a journal keeps the rows that have finished. So to run
again is to resume, and one more instruction costs one row's work. Rows whose input is no longer
wanted are set aside, and come back with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ste_jax.parallel.processes import Processes
from ste_jax.run.changes import Changes
from ste_jax.run.journal import Journal
from ste_jax.run.sharded_plan import foretell, kept, plan
from ste_jax.run.sharded_work import Outputs, ShardedWork, in_tables
from ste_jax.run.stopping import InHand
from ste_jax.system import files, preemption, progress
from ste_jax.system.display import no_figures
from ste_jax.system.errors import WorkError
from ste_jax.system.progress_lines import Figure


@dataclass
class _Shard:
    number: int
    waiting: set[str]
    rows: list[list[Any]]
    lost: list[list[Any]]
    """Rows that are there and are no longer wanted."""
    worked: int


class _Work:
    """The shards that a process works on: the open ones, and the shard of each row."""

    def __init__(
        self,
        stage: ShardedWork,
        shards: Sequence[int],
        journal: Journal,
        in_hand: InHand,
        on_shard: Callable[[int, int], None],
    ) -> None:
        self._stage, self._shards, self._on_shard = stage, shards, on_shard
        self._journal, self._in_hand = journal, in_hand
        self._open: dict[int, _Shard] = {}
        self._home_of: dict[str, int] = {}

    def stream(self) -> Iterator[Any]:
        """Yields the rows to work on. A shard that only loses rows is written in passing."""
        for number in self._shards:
            inputs = self._stage.inputs(number)
            wanted = {row.id for row in inputs}
            done, rows, lost = kept(self._stage, number, wanted)
            shard = _Shard(number, wanted - done, rows, lost, len(wanted - done))
            if not shard.waiting:
                self._write(shard)
                continue
            self._open[number] = shard
            self._home_of |= dict.fromkeys(shard.waiting, number)
            yield from self._in_hand.giving([row for row in inputs if row.id in shard.waiting])

    def take(self, row: Any, outputs: Outputs) -> None:
        """Take the output rows of an input row; after a shard's last row, write the shard."""
        shard = self._open[self._home_of.pop(row.id)]
        for rows, new in zip(shard.rows, outputs, strict=True):
            rows.extend(new)
        shard.waiting.discard(row.id)
        self._in_hand.finished += 1
        if shard.waiting:
            self._journal.add(shard.number, row.id, outputs)
        else:
            self._write(self._open.pop(shard.number))

    def broken_off(self) -> None:
        """If the work ends before shards are whole, what was done for them is counted now: the next
        start takes the rows of the journal as they are."""
        done = {n: shard.worked - len(shard.waiting) for n, shard in self._open.items()}
        if rows := sum(done.values()):
            self._on_shard(max(done, key=lambda number: done[number]), rows)

    def end(self) -> None:
        """All is written."""
        assert not self._open, f"{self._stage.name} left shards {sorted(self._open)} unfinished"

    def _write(self, shard: _Shard) -> None:
        # a kill between two tables leaves inputs with rows in one of them: they are asked again
        _set_aside(self._stage, shard)
        for table, rows in zip(self._stage.outputs, shard.rows, strict=True):
            table.write(shard.number, rows)
        self._journal.forget(shard.number)
        self._on_shard(shard.number, shard.worked)


def run_sharded(
    stage: ShardedWork,
    work: Callable[[Iterator[Any]], Iterable[tuple[Any, Outputs]]],
    processes: Processes,
    on_shard: Callable[[int, int], None] = lambda shard, rows: None,
    figures: Callable[[], Sequence[Figure]] = no_figures,
    changes: Changes | None = None,
    keep_every: float | None = None,
    tokens_in_hand: Callable[[], int] = lambda: 0,
) -> bool:
    """Do the missing work of a stage; returns whether there was any.

    `work` takes the stream of input rows and yields (input row, rows for each output table) in any
    order. `on_shard(shard, rows worked on)` is called after a shard is written, and once if rows
    of other shards are kept when the work is broken off; `figures()` are shown beside how far it
    is. All processes have finished their shards when this returns.

    With `keep_every`, in seconds, rows are kept as they finish (see `run.journal`): give it where a
    model is asked. `tokens_in_hand()` is how many tokens were drawn of rows that have not finished.

    Raises:
      WorkError: after all have finished, a shard is not there for process 0 to see.
      Preempted: asked to stop; what was in hand is said on standard error.
    """
    changes = changes or Changes()
    if changes.dry:
        foretell(stage, changes)
        return False
    missing = processes.from_first(f"plan {stage.name}", lambda: plan(stage, changes))
    mine = [(shard, todo) for shard, todo in missing if shard % processes.count == processes.index]
    total = sum(todo for _, todo in mine)
    with (
        Journal(stage.journal, stage.made_under, keep_every) as journal,
        progress.work(stage.shown, total, stage.words.rows, figures=figures) as shown,
    ):
        in_hand = InHand(stage.step.title, stage.words.rows, tokens_in_hand)
        here = _Work(stage, [shard for shard, _ in mine], journal, in_hand, on_shard)
        with in_hand.stoppable():
            try:
                # a stage with nothing to ask never begins its work, and so loads no model
                for row, outputs in work(here.stream()) if total else _exhausted(here.stream()):
                    here.take(row, outputs)
                    shown.add()
                    preemption.poll()
            finally:
                if keep_every is not None:
                    here.broken_off()
    here.end()
    processes.barrier(f"end {stage.name}")
    processes.from_first(f"seen {stage.name}", lambda: _see_all(stage))
    return bool(missing)


def _see_all(stage: ShardedWork) -> None:
    """Wait until process 0 sees every shard: a network file system may show a file late, and a
    directory that is not shared never does. Then remove what a kill left of the journal."""
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
    if stage.journal.exists():
        files.remove(stage.journal)


_SEEN_WITHIN_S = 60.0


def _exhausted(rows: Iterator[Any]) -> Iterator[tuple[Any, Outputs]]:
    """Read the stream to its end, so that it writes the shards that only lose rows."""
    for row in rows:
        raise AssertionError(f"the plan did not know of row {row.id}")
    yield from ()


def _set_aside(stage: ShardedWork, shard: _Shard) -> None:
    """Set aside the rows that a shard is about to lose."""
    lost = stage.done(shard.lost)
    if not lost:
        return
    aside = in_tables(stage, shard.number, stage.unwanted)
    older = stage.of(stage.done(aside) - lost, aside)
    for table, old, new in zip(stage.unwanted, older, shard.lost, strict=True):
        table.write(shard.number, old + new)
