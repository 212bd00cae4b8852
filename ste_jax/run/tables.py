"""How does a run keep the rows of one type?

They are a table of Parquet shards: a row belongs to the shard of its instruction's id, rows in a
shard are ordered by id, a shard's file appears whole or not at all, and a shard that is there is
done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic

from etils import epath

from ste_jax import records
from ste_jax.records import Row
from ste_jax.system import files, hashing
from ste_jax.system.errors import WorkError

HELD_BYTES = 1 << 26
"""The files whose rows are held in memory (see `held`) have no more bytes together."""


@dataclass
class _Held:
    """Rows that were read, by their file as it was then."""

    rows: dict[tuple[Any, ...], list[Any]] = field(default_factory=dict)
    bytes: int = 0


_held: ContextVar[_Held | None] = ContextVar("held", default=None)
"""Of one thread: another may work on a run meanwhile."""


@contextmanager
def held() -> Iterator[None]:
    """Hold the rows that are read in the `with` block, until a table is written: the steps of a
    start read what its plan has read."""
    before = _held.set(_Held())
    try:
        yield
    finally:
        _held.reset(before)


@dataclass(frozen=True)
class Table(Generic[Row]):
    """A table of a run: `shards` Parquet files of rows of one type in one directory."""

    directory: epath.Path
    row_type: type[Row]
    shards: int

    def path(self, shard: int) -> epath.Path:
        """The file of one shard."""
        return self.directory / f"{shard:05d}-of-{self.shards:05d}.parquet"

    def done(self, shard: int) -> bool:
        """Whether the shard is there; then it is whole."""
        return bool(self.path(shard).exists())

    def complete(self) -> bool:
        """Whether every shard is there."""
        return all(self.done(shard) for shard in range(self.shards))

    def read(self, shard: int) -> list[Row]:
        """The rows of one shard; none if it is not there."""
        path = self.path(shard)
        if not path.exists():
            return []
        held = _held.get()
        if held is None:
            return records.from_parquet(path.read_bytes(), self.row_type, str(path))
        stat = path.stat()
        key = (str(path), self.row_type, stat.length, stat.mtime)
        if key in held.rows:
            return list(held.rows[key])
        rows = records.from_parquet(path.read_bytes(), self.row_type, str(path))
        if held.bytes + stat.length <= HELD_BYTES:
            held.rows[key] = rows
            held.bytes += stat.length
        return list(rows)

    def rows(self) -> Iterator[Row]:
        """All rows, shard by shard: no more than one shard is in memory."""
        for shard in range(self.shards):
            yield from self.read(shard)

    def count(self) -> int:
        """How many rows there are, without reading any."""
        return sum(
            records.open_parquet(self.path(shard).read_bytes(), "").metadata.num_rows
            for shard in range(self.shards)
            if self.done(shard)
        )

    def write(self, shard: int, rows: Iterable[Row]) -> int:
        """Write one shard, ordered by id; returns how many rows it then holds.

        Raises:
          WorkError: it cannot be written, or then does not hold the rows that were given.
        """
        held = _held.get()
        if held is not None:  # the work has begun: what was read before is seldom read again
            held.rows, held.bytes = {}, 0
        ordered = sorted(rows, key=lambda row: row.id)  # type: ignore[attr-defined]
        path = self.path(shard)
        files.write_whole(path, records.to_parquet(ordered, self.row_type))
        found = records.open_parquet(path.read_bytes(), str(path)).metadata.num_rows
        self.expect(found, len(ordered), str(path))
        return len(ordered)

    def expect(self, found: int, wanted: int, where: str = "") -> None:
        """Check that the number of rows written is the number that was to be written.

        Raises:
          WorkError: some are missing, or there are too many.
        """
        if found != wanted:
            raise WorkError(
                f"{where or self.directory} holds {found} rows, and {wanted} were to be written; "
                "see whether something else writes there, and run again"
            )

    def check(self) -> None:
        """Read every shard only to see whether it is whole. Raises as `read`."""
        for shard in range(self.shards):
            path = self.path(shard)
            if path.exists():
                records.open_parquet(path.read_bytes(), str(path))

    def remove(self) -> None:
        """Forget the table."""
        files.remove(self.directory)


def row_ids(tables: Iterable[Table[Any]]) -> str:
    """A hash over the ids of all rows of some tables, which identifies the inputs of a step."""
    digest = hashing.hasher()
    for table in tables:
        for row in table.rows():
            digest.update(row.id.encode() + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()
