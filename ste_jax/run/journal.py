"""How are rows kept that finish before their shard is whole?

A stage has a journal beside its tables: a directory with a line for each input row that has
finished, which holds the rows that were made of it. A line has a checksum over itself and the
stage's fingerprint, so one that a kill has cut off counts for nothing, and neither does one that
was made under other knobs. Whoever works on a shard next takes its lines as rows that are there.
When the shard's files are written, its lines go.

On a disk a line is written to its file at once, and the file is synced every few seconds. An object
store takes only whole objects: there a process writes its new lines every `keep_every` seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from ste_jax import records
from ste_jax.system import files, hashing
from ste_jax.system.errors import WorkError

SYNC_EVERY_S = 5.0
"""At the most so many seconds of rows on a disk are lost with its machine's power."""
_OBJECT_BYTES = 1 << 22
"""An object that has reached this size is not written again: the next lines get another one."""


def read(
    directory: epath.Path, shard: int, made_under: str, row_types: Sequence[type[Any]]
) -> dict[str, list[list[Any]]]:
    """The finished inputs of a shard (ids), each with the rows made of it for every table."""
    found: dict[str, list[list[Any]]] = {}
    for path in _of_shard(directory, shard):
        for line in path.read_bytes().split(b"\n"):
            if (body := _body(line, made_under)) is not None:
                entry = json.loads(body)
                tables = zip(entry["rows"], row_types, strict=True)
                made = [[records.as_row(row, kind) for row in rows] for rows, kind in tables]
                found.setdefault(entry["id"], made)
    return found


def count(directory: epath.Path, shard: int) -> int:
    """How many lines there are of a shard, whatever they were made under. Files that go meanwhile,
    since their shard is written, have none."""
    lines = 0
    for path in _of_shard(directory, shard):
        with contextlib.suppress(FileNotFoundError):
            lines += path.read_bytes().count(b"\n")
    return lines


def _of_shard(directory: epath.Path, shard: int) -> list[epath.Path]:
    """The files with lines of a shard, whoever wrote them."""
    return sorted(directory.glob(f"{shard:05d}.*.lines")) if directory.exists() else []


def _line(id: str, outputs: Sequence[Sequence[Any]], made_under: str) -> bytes:
    rows = [[dataclasses.asdict(row) for row in of_table] for of_table in outputs]
    body = json.dumps({"id": id, "rows": rows}).encode()
    return b"%s %s\n" % (_check(body, made_under), body)


def _body(line: bytes, made_under: str) -> bytes | None:
    """What a line holds; None if it is torn, or was made under another fingerprint."""
    check, _, body = line.partition(b" ")
    return body if body and check == _check(body, made_under) else None


def _check(body: bytes, made_under: str) -> bytes:
    return hashing.hex_digest(f"{made_under}\0{body.decode(errors='replace')}", 8).encode()


class Journal:
    """Keeps a stage's rows as they finish. Use it in a `with` block: all is kept when that ends,
    however it ends. A journal without `keep_every` keeps nothing.

    Raises:
      WorkError: a line cannot be written.
    """

    def __init__(
        self, directory: epath.Path, made_under: str, keep_every: float | None = None
    ) -> None:
        self._directory, self._made_under = directory, made_under
        self._off = keep_every is None
        self._remote = files.is_remote(directory)
        every = keep_every or 0.0
        self._every = every if self._remote else min(every, SYNC_EVERY_S)
        self._name = secrets.token_hex(4)  # no two processes write to one file
        self._open: dict[int, _File | _Objects] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._keeper: threading.Thread | None = None
        self._failure: Exception | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._keeper is not None:
            self._keeper.join()
        for shard in list(self._open):
            self._open.pop(shard).close()
        self._raise_failure()

    def add(self, shard: int, id: str, outputs: Sequence[Sequence[Any]]) -> None:
        """Keep the rows that were made of an input."""
        if self._off:
            return
        self._raise_failure()
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep_on, name="journal", daemon=True)
            self._keeper.start()
        line = _line(id, outputs, self._made_under)
        with self._lock:
            if shard not in self._open:
                kind = _Objects if self._remote else _File
                self._open[shard] = kind(self._directory / f"{shard:05d}.{self._name}")
            self._open[shard].add(line)

    def forget(self, shard: int) -> None:
        """Remove the lines of a shard, whose files are written."""
        with self._lock:
            if shard in self._open:
                self._open.pop(shard).close()
        for path in _of_shard(self._directory, shard):
            files.remove(path)

    def _keep_on(self) -> None:
        """Keep what is new again and again, also while no row finishes."""
        while not self._ended.wait(self._every):
            try:
                with self._lock:
                    for each in self._open.values():
                        each.keep()
            except Exception as error:  # it is raised where the next row is kept
                self._failure = error
                return

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


class _File:
    """Lines in a file on a disk, which only grows."""

    def __init__(self, place: epath.Path) -> None:
        self._path = Path(f"{os.fspath(place)}.lines")
        files.about_to_change(place)
        self._new = False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            files.sync_directory(self._path.parent)
        except OSError as error:
            raise self._failed(error) from error

    def add(self, line: bytes) -> None:
        try:
            while line:
                line = line[os.write(self._handle, line) :]
        except OSError as error:
            raise self._failed(error) from error
        self._new = True

    def keep(self) -> None:
        if self._new:
            self._new = False
            try:
                os.fsync(self._handle)
            except OSError as error:
                raise self._failed(error) from error

    def close(self) -> None:
        self.keep()
        os.close(self._handle)

    def _failed(self, error: OSError) -> WorkError:
        return WorkError(
            f"could not append to {self._path}: {error.strerror}; make room and run again"
        )


class _Objects:
    """Lines in objects of a store. The last one is written again, whole, until it is large."""

    def __init__(self, place: epath.Path) -> None:
        self._place = os.fspath(place)
        self._number, self._new = 0, False
        self._lines: list[bytes] = []

    def add(self, line: bytes) -> None:
        self._lines.append(line)
        self._new = True

    def keep(self) -> None:
        if not self._new:
            return
        data = b"".join(self._lines)
        files.write_whole(epath.Path(f"{self._place}-{self._number:06d}.lines"), data)
        self._new = False
        if len(data) >= _OBJECT_BYTES:
            self._number, self._lines = self._number + 1, []

    def close(self) -> None:
        self.keep()
