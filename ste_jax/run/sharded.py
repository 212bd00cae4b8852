"""Which rows of a stage are still to be done, by which process, and when is a shard written?

The shard is the unit of work. Process 0 lists once what is missing and sends the list to all; shard
k goes to process k mod P. Rows that a shard already has are kept, only missing ones are worked on,
and the work gets one stream of rows over the borders of shards; a shard's files are written, whole,
once its last row is done. So to run again is to resume, and one more instruction costs one row's
work. Rows whose input is no longer wanted are set aside, and come back with it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar

from etils import epath
from tqdm import tqdm

from ste_jax.config.identity import Identity
from ste_jax.parallel.processes import Processes
from ste_jax.run import marks
from ste_jax.run.changes import Changes, RecipeStep, counted
from ste_jax.run.tables import Table
from ste_jax.system import preemption
from ste_jax.system.errors import WorkError

_VERBS = {"are": "is", "get": "gets"}
"""First words of what is done with rows -> the same of one row."""


def _of_one(verb: str, number: int) -> str:
    """What is done with rows, as it is said of so many."""
    first, _, rest = verb.partition(" ")
    return f"{_VERBS[first]} {rest}" if number == 1 else verb


In = TypeVar("In")
Outputs = Sequence[list[Any]]


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of messages about a stage: `12 instructions are labelled`; and of rows that go,
    that they `are no longer in the pool`."""

    step: RecipeStep | None = None
    """The step of the stage; by default one with the stage's name that depends on no other step."""
    rows: str = "rows"
    verb: str = "are worked on"
    home: str = ""
    """What the tables and files belong to: `iteration 1`."""
    gone: str = "are no longer there"

    def done(self, number: int | None = None, more: str = "") -> str:
        """A sentence on what is done with `number` rows, or with as many as there will be."""
        if number is None:
            return f"{self.rows} {self.verb}"
        return f"{counted(number, self.rows, more)} {_of_one(self.verb, number)}"


@dataclass(frozen=True, kw_only=True)
class ShardedWork:
    """A stage that works shard by shard.

    `inputs(shard)` gives the rows to work on; `outputs` are the tables it writes; `input_of(table
    index, row)` names the input row (its id) that an output row came from. Every input must give at
    least one row in some table. If they belong `together`, it gives one in the last table, and what
    the others hold of it is made with that alone. `derived` was made of the outputs, and goes when
    they are to change. `ready` is called before anything made under another fingerprint makes room,
    and raises what would stop the work at its first row.
    """

    name: str
    made_under: str
    home: epath.Path
    inputs: Callable[[int], list[Any]]
    outputs: Sequence[Table[Any]]
    input_of: Callable[[int, Any], str]
    derived: Sequence[epath.Path] = ()
    together: bool = False
    ready: Callable[[], object] = lambda: None
    words: Words = Words()
    """The words of messages about the stage."""

    @property
    def identity(self) -> Identity:
        """The stage's fingerprint, with what it was made of where that is known."""
        found = self.made_under
        return found if isinstance(found, Identity) else Identity(found)

    @property
    def step(self) -> RecipeStep:
        """The stage's step: what messages call it, and what it depends on."""
        return self.words.step if self.words.step else RecipeStep(title=self.name)

    @property
    def mark(self) -> epath.Path:
        """The file that holds the fingerprint of the rows that are there."""
        return self.home / f"{self.name}.mark.json"

    @property
    def unwanted(self) -> list[Table[Any]]:
        """Tables of rows made under today's fingerprint whose inputs are no longer wanted."""
        home = marks.aside(self.mark, self.made_under) / "unwanted"
        return [dataclasses.replace(t, directory=home / t.directory.name) for t in self.outputs]

    def of(self, inputs: Set[str], rows: Outputs) -> list[list[Any]]:
        """The rows of each table that came from these inputs (ids)."""
        return [
            [row for row in of_table if self.input_of(index, row) in inputs]
            for index, of_table in enumerate(rows)
        ]

    def done(self, rows: Outputs) -> set[str]:
        """The ids of the inputs that have all their rows."""
        ids = [{self.input_of(i, row) for row in of_table} for i, of_table in enumerate(rows)]
        return ids[-1] if self.together else set.union(*ids)


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
            done, kept = _kept(self._stage, number, wanted)
            shard = _Shard(number, wanted - done, kept, len(wanted - done))
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
        _foretell(stage, changes)
        return False
    plan = processes.from_first(f"plan {stage.name}", lambda: _plan(stage, changes))
    mine = [(shard, todo) for shard, todo in plan if shard % processes.count == processes.index]
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
    return bool(plan)


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


@dataclass
class _Survey:
    """How many inputs of a stage have their rows in its tables, and how many do not."""

    wanted: int = 0
    had: int = 0
    """Inputs that have all their rows."""
    back: int = 0
    """Wanted inputs whose rows were set aside under today's fingerprint: they come back."""
    again: int = 0
    """Wanted inputs whose rows were made under another fingerprint: they are made again."""
    missing: int = 0
    """Wanted inputs without rows, neither there nor set aside."""
    lost: int = 0
    """Inputs that have rows and are no longer wanted."""
    unreadable: bool = False
    """Whether rows of another fingerprint cannot be read; they are set aside as they are."""

    @property
    def made(self) -> bool:
        """Whether there is anything that was made."""
        return self.had > 0 or self.unreadable


def _survey(stage: ShardedWork, changed: bool) -> _Survey:
    """Count what is there. `changed` says that it was made under another fingerprint."""
    found, home = _Survey(), marks.aside(stage.mark, stage.made_under)
    moved = [dataclasses.replace(t, directory=home / t.directory.name) for t in stage.outputs]
    for number in range(stage.outputs[0].shards):
        wanted = {row.id for row in stage.inputs(number)}
        try:
            done = stage.done(_finished(stage, number))
        except WorkError:
            if not changed:
                raise
            done, found.unreadable = set(), True
        aside = stage.done(_finished(stage, number, stage.unwanted))
        if changed:
            aside |= stage.done(_finished(stage, number, moved))
        back = wanted & (aside if changed else aside - done)
        found.wanted, found.had = found.wanted + len(wanted), found.had + len(done)
        found.back, found.lost = found.back + len(back), found.lost + len(done - wanted)
        found.again += len((wanted & done) - back) if changed else 0
        found.missing += len(wanted - done - back)
    return found


def _is_changed(stage: ShardedWork) -> bool:
    """Whether what is there was made under another fingerprint."""
    there = any(table.directory.exists() for table in stage.outputs)
    return there and marks.marked(stage.mark) != stage.made_under


def _foretell(stage: ShardedWork, changes: Changes) -> None:
    """Say what a start would do with the stage, for a dry run."""
    changed, step, words = _is_changed(stage), stage.step, stage.words
    there, found = marks.marked(stage.mark), _survey(stage, changed)
    if found.made and (changed or changes.follows(step)):
        if changed:
            what = _again(stage, found)
        elif step.asks in changes.redone:
            what = f"{words.done(found.had)} again"
        else:  # of the rows some may come out as they are
            what = f"{words.rows} that change, of {found.had:,}, and new ones {words.verb}"
        unknown = changes.follows(step) and _has_set_aside(stage)
        back = ", or come back from what is set aside" if unknown else ""
        changes.again(step, f"{what}{back}", there, stage.identity)
    else:
        whole = all(table.complete() for table in stage.outputs)
        if not found.wanted and not whole:
            changes.redone.add(step.title)
            changes.say(step.title, f"{words.done()}, for the first time")
        _say_few(stage, changes, found.missing, found.lost, first=not found.made)


def _again(stage: ShardedWork, found: _Survey) -> str:
    """A sentence on what is done with the rows that were made under another fingerprint."""
    if found.again or found.unreadable:
        some = f"some {stage.words.done()}" if found.unreadable else stage.words.done(found.again)
        return f"{some} again{_goes(stage)}"
    return "what was set aside comes back" if found.back else "what was made is set aside"


def _say_few(stage: ShardedWork, changes: Changes, todo: int, lost: int, first: bool) -> None:
    """Say how many rows are added or set aside in a stage whose fingerprint has not changed."""
    title, words = stage.step.title, stage.words
    if todo or lost:
        changes.redone.add(title)
    goes = _goes(stage)
    if todo and first and changes.dry:
        changes.say(title, f"{words.done(todo)}, for the first time")
    elif todo and not first and (changes.dry or goes):
        changes.say(title, f"{words.done(todo, 'more ')}{goes}")
    if lost:
        they, them = ("it", "it") if lost == 1 else ("they", "them")
        where = marks.aside(stage.mark, stage.made_under)
        changes.say(
            title,
            f"what was made of {counted(lost, words.rows)} is set aside, since {they} "
            f"{_of_one(words.gone, lost)}{goes}",
            f"It lies in {where / 'unwanted'}, and comes back with {them}",
        )


def _goes(stage: ShardedWork) -> str:
    """The end of a sentence, that what was made of the stage's rows goes; empty if there is none of
    it."""
    there = [path for path in stage.derived if path.exists()]
    if not there:
        return ""
    names = [f"the {path.name} set" for path in there if not path.suffix]
    names = names or [f"the {path.stem}" for path in there if path.name.count(".") == 1]
    what = " and ".join(names) or "what was made of them"
    of = f" of {stage.words.home}" if names and stage.words.home else ""
    return f", and {what}{of} {'go' if len(names) > 1 else 'goes'}"


def _has_set_aside(stage: ShardedWork) -> bool:
    home = marks.aside(stage.mark, "").parent
    return home.exists() and any(p.name.startswith(f"{stage.name}-") for p in home.iterdir())


def _plan(stage: ShardedWork, changes: Changes) -> list[tuple[int, int]]:
    """List every shard that must be written, with how many rows are to be done. Process 0 only."""
    changed, there = _is_changed(stage), marks.marked(stage.mark)
    found = _survey(stage, True) if changed else _Survey()
    if found.wanted:
        stage.ready()
    places = [table.directory for table in stage.outputs]

    def announce(where: str) -> None:
        if found.made:
            changes.again(stage.step, _again(stage, found), there, stage.identity, where)

    marks.change_over(stage.mark, places, stage.made_under, announce)
    plan, had, lost = [], 0, 0
    for number in range(stage.outputs[0].shards):
        wanted = {row.id for row in stage.inputs(number)}
        done = stage.done(_finished(stage, number))
        whole = all(table.done(number) for table in stage.outputs)
        had, lost = had + len(done), lost + len(done - wanted)
        if done != wanted or not whole:
            plan.append((number, len(wanted - _kept(stage, number, wanted)[0])))
    if plan:
        changes.redone.add(stage.step.title)
        if not found.made:
            todo = sum(each for _, each in plan)
            _say_few(stage, changes, todo, lost, first=not had)
        for path in stage.derived:
            marks.forget(path)
    return plan


def _kept(stage: ShardedWork, number: int, wanted: set[str]) -> tuple[set[str], list[list[Any]]]:
    """The wanted inputs that have all their rows, there or set aside, and these rows."""
    there = _finished(stage, number)
    done = wanted & stage.done(there)
    rows = stage.of(done, there)
    if done != wanted:
        aside = _finished(stage, number, stage.unwanted)
        back = (wanted - done) & stage.done(aside)
        rows = [one + other for one, other in zip(rows, stage.of(back, aside), strict=True)]
        done |= back
    return done, rows


def _set_aside(stage: ShardedWork, shard: _Shard) -> None:
    """Set aside the rows that a shard is about to lose."""
    there = _finished(stage, shard.number)
    lost = stage.done(there) - stage.done(shard.rows)
    if not lost:
        return
    aside = _finished(stage, shard.number, stage.unwanted)
    older = stage.of(stage.done(aside) - lost, aside)
    for table, old, new in zip(stage.unwanted, older, stage.of(lost, there), strict=True):
        table.write(shard.number, old + new)


def _finished(
    stage: ShardedWork, number: int, tables: Sequence[Table[Any]] = ()
) -> list[list[Any]]:
    """The rows of a shard in every table (those of the stage unless given); none of a table whose
    file is not there."""
    tables = tables or stage.outputs
    if stage.together and not all(table.done(number) for table in tables):
        return [[] for _ in tables]
    return [table.read(number) for table in tables]
