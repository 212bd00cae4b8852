"""What does a stage that works shard by shard make, and of what?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from etils import epath

from ste_jax.config.identity import Identity
from ste_jax.run import journal, marks
from ste_jax.run.changes import RecipeStep, counted
from ste_jax.run.tables import Table

_VERBS = {"are": "is", "get": "gets"}
"""First words of what is done with rows -> the same of one row."""

Outputs = Sequence[list[Any]]
"""Rows for each table of a stage."""


def of_one(verb: str, number: int) -> str:
    """What is done with rows, as it is said of so many."""
    first, _, rest = verb.partition(" ")
    return f"{_VERBS[first]} {rest}" if number == 1 else verb


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of messages about a stage: `12 instructions are labelled`; and of rows that go,
    that they `are no longer in the pool`."""

    step: RecipeStep | None = None
    """The step of the stage; by default one with the stage's name that depends on no other step."""
    shown: str = ""
    """What the stage is called while it goes on; by default by the step's title."""
    rows: str = "rows"
    verb: str = "are worked on"
    home: str = ""
    """What the tables and files belong to: `iteration 1`."""
    gone: str = "are no longer there"

    def done(self, number: int | None = None, more: str = "") -> str:
        """A sentence on what is done with `number` rows, or with as many as there will be."""
        if number is None:
            return f"{self.rows} {self.verb}"
        return f"{counted(number, self.rows, more)} {of_one(self.verb, number)}"


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
    by_model: bool = True
    """Whether its rows take a model to make."""

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
    def shown(self) -> str:
        """What the stage is called while it goes on."""
        return self.words.shown or self.step.title

    @property
    def mark(self) -> epath.Path:
        """The file that holds the fingerprint of the rows that are there."""
        return self.home / f"{self.name}.mark.json"

    @property
    def journal(self) -> epath.Path:
        """The directory that keeps rows until their shard is whole."""
        return self.home / f"{self.name}.journal"

    @property
    def places(self) -> list[epath.Path]:
        """All directories that hold rows made under one fingerprint, whole shards or not."""
        return [*(table.directory for table in self.outputs), self.journal]

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


def finished(stage: ShardedWork, number: int, made_under: str | None = None) -> list[list[Any]]:
    """The rows of a shard in every table of the stage, and those in its journal. What the journal
    holds counts under one fingerprint, today's unless another is given."""
    rows = in_tables(stage, number, stage.outputs)
    return with_journal(stage, number, rows, stage.journal, made_under)


def in_tables(stage: ShardedWork, number: int, tables: Sequence[Table[Any]]) -> list[list[Any]]:
    """The rows of a shard in tables like those of the stage; none of a table whose file is not
    there."""
    if stage.together and not all(table.done(number) for table in tables):
        return [[] for _ in tables]
    return [table.read(number) for table in tables]


def with_journal(
    stage: ShardedWork,
    number: int,
    rows: list[list[Any]],
    directory: epath.Path,
    made_under: str | None = None,
) -> list[list[Any]]:
    """The rows of a shard with those that a journal of the stage holds beyond them."""
    kinds = [table.row_type for table in stage.outputs]
    made_under = stage.made_under if made_under is None else made_under
    more = journal.read(directory, number, made_under, kinds)
    done = stage.done(rows)
    if not more.keys() - done:
        return rows
    rows = stage.of(done, rows)
    for id in more.keys() - done:
        rows = [[*old, *new] for old, new in zip(rows, more[id], strict=True)]
    return rows
