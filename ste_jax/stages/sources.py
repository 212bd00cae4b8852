"""How does a user's file become a stream of rows?

A source is a JSONL, JSON, CSV or Parquet file, a shipped set, or a `datasets` name. A fault in one
row costs that row; a fault that makes the rest of a file uncertain is an error that names the line.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ste_jax.system import notation, shipped
from ste_jax.system.errors import RequestError
from ste_jax.system.jsonl import read_jsonl

LONGEST_FIELD = 1 << 28
"""How many characters one field of CSV may have: an open quote must not take all memory."""
_AT_ONCE = 1 << 20
"""How many characters of a JSON file are read at once."""


@dataclass(frozen=True)
class Raw:
    """A row as it was found, or why it could not be read."""

    file: str
    line: int
    values: Mapping[str, Any] | None
    reason: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A value that could not be read."""

    reason: str


def read_source(source: str, split: str) -> Iterator[Raw]:
    """The rows of a file, a shipped set or a data set.

    Raises:
      RequestError: it does not exist or is not what its name says.
    """
    path = shipped.path_of(source)
    name = source if source in shipped.SHIPPED else str(path)
    if path.is_file():
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            known = ", ".join(sorted(READERS))
            instead = _INSTEAD.get(path.suffix.lower(), "")
            raise RequestError(f"instructions file {name} must end in one of {known}{instead}")
        if not os.access(path, os.R_OK):
            raise RequestError(f"instructions file {name} may not be read: permission denied")
        yield from reader(path, name)
    elif path.exists() or _is_place(source):
        raise RequestError(
            f"instructions file {name} {'is not a file' if path.exists() else 'does not exist'}; "
            "correct pool.path"
        )
    else:
        yield from _read_dataset(source, split)


_OTHER_ENDING = re.compile(
    r"\.(txt|tsv|ndjson|ya?ml|xml|xlsx?|arrow|feather|gz|bz2|xz|zst|zip|tar|tgz)", re.IGNORECASE
)
"""Endings of data files of kinds that are not read."""


_INSTEAD = {
    **dict.fromkeys((".tsv", ".xls", ".xlsx"), "; write it as CSV, with commas"),
    ".ndjson": "; name it .jsonl",
    ".txt": "; name it .jsonl where each line is JSON",
}
"""What to do instead with a file of a kind that is not read."""


def _is_place(source: str) -> bool:
    """Whether a source is the name of a file; a `datasets` name is `NAME` or `OWNER/NAME`."""
    ending = Path(source).suffix.lower()
    named = ending in READERS or _OTHER_ENDING.fullmatch(ending)
    return bool(named) or source.startswith((".", "/", "~")) or source.count("/") > 1


def _check_encoding(path: Path, name: str) -> None:
    with path.open("rb") as file:
        try:
            notation.check_encoding(file.read(4))
        except ValueError as error:
            raise RequestError(f"instructions file {name} cannot be read: {error}") from error


def _read_jsonl(path: Path, name: str) -> Iterator[Raw]:
    _check_encoding(path, name)
    for number, values, fault in read_jsonl(path):
        if fault:
            yield Raw(name, number, None, f"not JSON: {fault}")
        else:
            yield _mapping(name, number, values)


def _mapping(name: str, number: int, values: Any) -> Raw:
    if isinstance(values, str):
        values = {"instruction": values}
    if not isinstance(values, dict):
        hint = ": a file that is one JSON array is to end in .json" * isinstance(values, list)
        return Raw(name, number, None, f"not an object with named fields{hint}")
    return Raw(name, number, values)


# ---------------------------------------------------------------------------------------------
# JSON


def _read_json(path: Path, name: str) -> Iterator[Raw]:
    """The rows of a JSON array, one in memory at a time. A file that holds JSON lines instead is
    read as such."""
    _check_encoding(path, name)
    with path.open(encoding="utf-8-sig") as file:
        rows = _Array(file, name)
        first = rows.next_sign()
        if first == "[":
            yield from rows.rows()
            return
    if first == "{" and _is_json_lines(path):
        yield from _read_jsonl(path, name)
        return
    what = "one object" if first == "{" else "something else" if first else "nothing"
    raise RequestError(f"instructions file {name} must hold a JSON array of rows, not {what}")


def _is_json_lines(path: Path) -> bool:
    """Whether the first line is an object by itself and more lines follow."""
    with path.open("rb") as file:
        try:
            return isinstance(notation.from_json(file.readline()), dict) and bool(file.read(1))
        except ValueError:
            return False


class _Array:
    """A JSON array, read piece by piece."""

    def __init__(self, file: Any, name: str) -> None:
        self.file, self.name = file, name
        self.text, self.place, self.number, self.ended = "", 0, 0, False
        self.twice = ""
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self.twice = notation.first_twice([name for name, _ in pairs])
        return found

    def _more(self) -> None:
        try:
            # as much again as was read so far, so that a long row is not tried too often
            new = self.file.read(max(_AT_ONCE, len(self.text) - self.place))
        except UnicodeDecodeError as error:
            raise self._wrong(f"not UTF-8: {error.reason}") from error
        self.text, self.place, self.ended = self.text[self.place :] + new, 0, not new

    def _wrong(self, reason: str) -> RequestError:
        where = f"row {self.number + 1}"
        return RequestError(f"instructions file {self.name} is not JSON: {where}: {reason}")

    def next_sign(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in " \t\r\n":
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if self.ended:
                return ""
            self._more()

    def rows(self) -> Iterator[Raw]:
        self.place += 1
        sign = self.next_sign()
        while sign != "]":
            value = self._value()
            self.number += 1
            yield self._row(value)
            sign = self.next_sign()
            if sign not in (",", "]"):
                raise self._wrong("a comma or the array's end is missing")
            self.place += sign == ","
            if sign == "," and self.next_sign() == "]":
                raise self._wrong("nothing follows the last comma")
        self.place += 1
        if self.next_sign():
            raise self._wrong("something follows the array's end")

    def _value(self) -> Any:
        self.next_sign()
        while True:
            self.twice = ""
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
                if end < len(self.text) or self.ended:  # else a number could go on
                    self.place = end
                    return value
            except RecursionError as error:
                raise self._wrong("nested too deep") from error
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16
                if self.ended or not cut_off:
                    raise self._wrong(error.msg) from error
            except ValueError as error:
                raise self._wrong(str(error)) from error
            self._more()

    def _row(self, value: Any) -> Raw:
        try:
            notation.check_depth(value)
        except ValueError as error:
            return Raw(self.name, self.number, None, str(error))
        if self.twice:
            return Raw(self.name, self.number, None, f"the key {self.twice!r} stands twice")
        return _mapping(self.name, self.number, value)


# ---------------------------------------------------------------------------------------------
# Tables


def _read_csv(path: Path, name: str) -> Iterator[Raw]:
    _check_encoding(path, name)
    csv.field_size_limit(LONGEST_FIELD)
    # bytes that are not UTF-8 cost their row: they become lone surrogates, which no text may hold
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        header: list[str] | None = None
        for line, fields in _records(csv.reader(file, strict=True), name):
            if header is None:
                if isinstance(fields, str):
                    raise RequestError(f"instructions file {name}, line {line}: {fields}")
                _check_commas(fields, name)
                _check_header(fields, name)
                header = fields
            elif isinstance(fields, str):
                yield Raw(name, line, None, fields)
            elif len(fields) > len(header):
                yield Raw(name, line, None, "more fields than the header names")
            else:
                missing = [None] * (len(header) - len(fields))
                yield Raw(name, line, dict(zip(header, [*fields, *missing], strict=True)))


def _records(reader: Any, name: str) -> Iterator[tuple[int, list[str] | str]]:
    """The line where each record begins, with its fields or with what is wrong with it.

    Raises:
      RequestError: a quote is not closed, so that the record's end cannot be known.
    """
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if reader.line_num > line or "end of data" in str(error):
                raise RequestError(
                    f"instructions file {name}, line {line}: a quote is opened that is not closed "
                    f"as CSV has it ({error}); close it, or write a quote in a text twice"
                ) from error
            yield line, f"not CSV: {error}"
            continue
        if fields is None:
            return
        if notation.has_lone_surrogate("".join(fields)):
            yield line, "not UTF-8"
        elif fields:
            yield line, fields


def _check_commas(header: list[str], name: str) -> None:
    for sign, called in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and sign in header[0]:
            raise RequestError(
                f"instructions file {name}: columns are to be parted by commas, and the first line "
                f"has {called}: write it as CSV with commas"
            )


def _check_header(names: list[str], name: str) -> None:
    if twice := notation.first_twice(names):
        raise RequestError(f"instructions file {name} names the column {twice!r} twice; rename one")


def _read_parquet(path: Path, name: str) -> Iterator[Raw]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_header(names, name)
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                columns = [_values(column) for column in batch.columns]
                for row in zip(*columns, strict=True):
                    number += 1
                    yield Raw(name, number, dict(zip(names, row, strict=True)))
    except (pa.ArrowException, OSError) as error:
        raise RequestError(f"instructions file {name} is not readable Parquet: {error}") from error


def _values(column: Any) -> list[Any]:
    """A column's values; one that Python cannot represent becomes `Unreadable`."""
    try:
        return list(column.to_pylist(maps_as_pydicts="lossy"))
    except Exception:  # many kinds: a date out of range, a text that is not UTF-8, a strange zone
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="lossy")
    except Exception as error:
        return Unreadable(" ".join(str(error).split()))


READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _read_dataset(name: str, split: str) -> Iterator[Raw]:
    import datasets  # slow to import, and only needed for a hub's data set

    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        for number, values in enumerate(rows, start=1):
            yield Raw(name, number, values)
    except Exception as error:  # the library raises many kinds, for one meaning
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"instructions {name} is neither a file nor a data set that can be loaded: {reason}"
        ) from error
