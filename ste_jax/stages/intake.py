"""How do somebody's files become the pool of instructions?

JSONL, JSON, CSV and Parquet files, the shipped set, or a `datasets` name are read as a stream; a
row that cannot be used is set aside with file, line and reason; exact duplicates collapse. Columns
that are not ours survive in `extra`."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ste_jax import shipped
from ste_jax.config import PoolKnobs
from ste_jax.errors import RequestError
from ste_jax.generators.protocol import Message
from ste_jax.records import Instruction, instruction_id

VERSION = 1
USUAL_FIELDS = ("instruction", "prompt", "question", "messages", "conversation", "turns", "text")


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row of the source that is not taken in."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class _Raw:
    file: str
    line: int
    values: Mapping[str, Any] | None
    reason: str = ""


def read_pool(knobs: PoolKnobs) -> Iterator[Instruction | Rejected]:
    """Instructions and rejected rows of all sources, in the order they are read.

    Duplicates are not collapsed here.

    Raises:
      RequestError: a source does not exist or is not what its name says.
    """
    taken = 0
    for source in knobs.path:
        for raw in _read_source(source, knobs.split):
            if knobs.limit and taken >= knobs.limit:
                return
            row = _instruction(raw, knobs)
            if row is None:
                continue
            taken += isinstance(row, Instruction)
            yield row


def source_identity(knobs: PoolKnobs) -> list[Any]:
    """What tells whether the sources are the ones that were read: names, sizes, times of change."""
    identity: list[Any] = []
    for source in knobs.path:
        path = shipped.path_of(source)
        stat = path.stat() if path.is_file() else None
        identity.append([source, stat and stat.st_size, stat and stat.st_mtime_ns])
    return identity


def missing_files(knobs: PoolKnobs) -> list[str]:
    """The sources that are named like a file and are not there."""
    return [
        source
        for source in knobs.path
        if source not in shipped.SHIPPED
        and Path(source).suffix.lower() in _READERS
        and not Path(source).exists()
    ]


def _read_source(source: str, split: str) -> Iterator[_Raw]:
    path = shipped.path_of(source)
    name = source if source in shipped.SHIPPED else str(path)
    if path.is_file():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            known = ", ".join(sorted(_READERS))
            raise RequestError(f"instructions file {name} must end in one of {known}")
        if not os.access(path, os.R_OK):
            raise RequestError(f"instructions file {name} may not be read: permission denied")
        yield from reader(path, name)
    elif path.suffix.lower() in _READERS or path.exists():
        raise RequestError(f"instructions file {name} does not exist or is not a file")
    else:
        yield from _read_dataset(source, split)


def _read_jsonl(path: Path, name: str) -> Iterator[_Raw]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield _Raw(name, number, None, f"not JSON: {error}")
                continue
            yield _mapping(name, number, values)


def _read_json(path: Path, name: str) -> Iterator[_Raw]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RequestError(f"instructions file {name} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise RequestError(f"instructions file {name} must hold a JSON array of rows")
    for number, values in enumerate(rows, start=1):
        yield _mapping(name, number, values)


def _mapping(name: str, number: int, values: Any) -> _Raw:
    if isinstance(values, str):
        values = {"instruction": values}
    if not isinstance(values, dict):
        return _Raw(name, number, None, "not an object with named fields")
    return _Raw(name, number, values)


def _read_csv(path: Path, name: str) -> Iterator[_Raw]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for values in reader:
                if None in values:
                    yield _Raw(name, reader.line_num, None, "more fields than the header names")
                else:
                    yield _Raw(name, reader.line_num, values)
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"instructions file {name} is not readable CSV: {error}") from error


def _read_parquet(path: Path, name: str) -> Iterator[_Raw]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield _Raw(name, number, values)
    except (pa.ArrowException, OSError) as error:
        raise RequestError(f"instructions file {name} is not readable Parquet: {error}") from error


_READERS = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _read_dataset(name: str, split: str) -> Iterator[_Raw]:
    import datasets  # slow to import, and only needed for a hub's data set

    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        for number, values in enumerate(rows, start=1):
            yield _Raw(name, number, values)
    except Exception as error:  # the library raises many kinds, for one meaning
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"instructions {name} is neither a file nor a data set that can be loaded: {reason}"
        ) from error


_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def at_path(values: Any, path: str) -> Any:
    """The value at a field path like `conversation[0].content`; None where it leads nowhere."""
    for name, index in _STEP.findall(path):
        if index:
            if not isinstance(values, (list, tuple)) or int(index) >= len(values):
                return None
            values = values[int(index)]
        else:
            if not isinstance(values, Mapping) or name not in values:
                return None
            values = values[name]
    return values


def _instruction(raw: _Raw, knobs: PoolKnobs) -> Instruction | Rejected | None:
    """The row as an instruction, or why not; None for a row that a filter passes over."""

    def reject(reason: str) -> Rejected:
        return Rejected(file=raw.file, line=raw.line, reason=reason)

    if raw.values is None:
        return reject(raw.reason)
    for path, wanted in knobs.require.items():
        if str(at_path(raw.values, path)) != wanted:
            return None
    path = knobs.instruction_field or _usual_field(raw.values)
    if not path:
        return reject(f"none of the fields {', '.join(USUAL_FIELDS)}; set pool.instruction_field")
    value = at_path(raw.values, path)
    messages = _messages(value)
    if messages is None:
        return reject(f"field {path} is not a text or a list of turns that begins with the user's")
    if any(not turn["content"].strip() for turn in messages):
        return reject(f"field {path} is empty")
    if sum(len(turn["content"]) for turn in messages) > knobs.max_chars:
        return reject(f"field {path} is longer than pool.max_chars={knobs.max_chars}")
    top = re.split(r"[.\[]", path, maxsplit=1)[0]
    rest = {key: item for key, item in raw.values.items() if key != top}
    if knobs.id_field:
        rest["source_id"] = at_path(raw.values, knobs.id_field)
    extra = json.dumps(rest, ensure_ascii=False, sort_keys=True, default=str) if rest else ""
    try:
        for text in (extra, *(turn["role"] + turn["content"] for turn in messages)):
            text.encode("utf-8")
    except UnicodeEncodeError:
        return reject("a text holds half of a surrogate pair")
    return Instruction(
        id=instruction_id(messages),
        messages=messages,
        source=f"{raw.file}:{raw.line}",
        extra=extra,
    )


def _usual_field(values: Mapping[str, Any]) -> str:
    return next((name for name in USUAL_FIELDS if values.get(name)), "")


def _messages(value: Any) -> tuple[Message, ...] | None:
    """A text is one user turn; a list of texts gives its first; a list of turns gives its system
    turn, if it begins with one, and the user's first (the later ones answer replies that we do not
    have)."""
    if isinstance(value, str):
        return (Message(role="user", content=value.strip()),)
    if not isinstance(value, (list, tuple)) or not value:
        return None
    if isinstance(value[0], str):
        return (Message(role="user", content=value[0].strip()),)
    turns: list[Message] = []
    for turn in value:
        role, content = at_path(turn, "role"), at_path(turn, "content")
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        turns.append(Message(role=role, content=content.strip()))
        if role == "user":
            return tuple(turns)
        if role != "system" or len(turns) > 1:
            return None  # no chat template takes it, and the user asked for nothing yet
    return None


def collapse(
    rows: Iterable[Instruction | Rejected], counts: dict[str, int], set_aside: list[Rejected]
) -> Iterator[Instruction]:
    """Pass each instruction once; count what was read, rejected and duplicate into `counts`.

    Memory: one id per instruction, and the rejected rows (no texts).
    """
    counts.update(read=0, rejected=0, duplicates=0, kept=0)
    seen: set[str] = set()
    for row in rows:
        counts["read"] += 1
        if isinstance(row, Rejected):
            counts["rejected"] += 1
            set_aside.append(row)
        elif row.id in seen:
            counts["duplicates"] += 1
        else:
            seen.add(row.id)
            counts["kept"] += 1
            yield row
