"""How do a user's rows become the pool of instructions?

A row that cannot be used is set aside with file, line and reason; context in other columns is read
with the instruction; exact duplicates are merged; a sample is drawn by hash. Columns that are not
ours are kept in `extra`."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ste_jax.config.schema import PoolKnobs
from ste_jax.generation import Message
from ste_jax.records import Instruction, hash_order, instruction_id
from ste_jax.stages.sources import READERS, Raw, Unreadable, read_source
from ste_jax.stages.turns import (
    at_path,
    column_of,
    earlier,
    groups_around,
    opening,
    speaker,
    text_of,
    with_system,
)
from ste_jax.system import hashing, notation, shipped
from ste_jax.system.errors import RequestError

VERSION = 2
USUAL_FIELDS = (
    "instruction",
    "prompt",
    "question",
    "messages",
    "conversation",
    "conversations",
    "turns",
    "text",
)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row of the source that cannot be used."""

    file: str
    line: int
    reason: str


class Filter:
    """Passes the rows that meet `pool.require`; counts the others, and what they have instead."""

    def __init__(self, require: Mapping[str, str]) -> None:
        self.require = require
        self.met, self.passed_over = 0, 0
        self.had: dict[str, Counter[str]] = {}
        self.columns: list[str] = []

    def passes(self, values: Mapping[str, Any]) -> bool:
        """Whether a row has all that is required."""
        for path, wanted in self.require.items():
            spellings = _spellings(at_path(values, path))
            if wanted not in spellings:
                found = self.had.setdefault(path, Counter())
                had = spellings[0][:80]
                if had in found or len(found) < _VALUES_KEPT:
                    found[had] += 1
                self.passed_over += 1
                self.columns = self.columns or [str(name) for name in values]
                return False
        self.met += 1
        return True

    def message(self) -> str:
        """A sentence for the user who filtered out every row: what the rows have instead."""
        parts = []
        for path, found in self.had.items():
            values = ", ".join(f"{value!r} ({rows} rows)" for value, rows in found.most_common(8))
            more = " and others" if len(found) > 8 else ""
            parts.append(f"{path} is to be {self.require[path]!r}, and is {values}{more}")
        return (
            f"no row meets pool.require: {'; '.join(parts)}; the columns are "
            f"{', '.join(self.columns[:20])}"
        )


_VALUES_KEPT = 1000


def _spellings(value: Any) -> list[str]:
    """How a value may be written in `pool.require`: true also as JSON has it."""
    if isinstance(value, bool):
        return [str(value), str(value).lower()]
    return [str(value)]


def read_pool(knobs: PoolKnobs, kept: Filter | None = None) -> Iterator[Instruction | Rejected]:
    """Instructions and rejected rows of all sources, in the order they are read. Rows that do not
    meet `require` are only counted, in `kept`. Duplicates are not merged here.

    Raises:
      RequestError: a source does not exist or is not what its name says.
    """
    taken = 0
    kept = kept or Filter(knobs.require)
    for source in knobs.path:
        for raw in read_source(source, knobs.split):
            if knobs.limit and taken >= knobs.limit:
                return
            row = _instruction(raw, knobs, kept)
            if row is None:
                continue
            taken += isinstance(row, Instruction)
            yield row


def source_identity(knobs: PoolKnobs) -> list[Any]:
    """What a fingerprint holds of the sources: their names, and hashes of files."""
    identity: list[Any] = []
    for source in knobs.path:
        path = shipped.path_of(source)
        identity.append([source, _hash(path) if path.is_file() else None])
    return identity


def _hash(path: Path) -> str:
    try:
        return hashing.file_digest(path)
    except OSError as error:
        raise RequestError(
            f"instructions file {path} may not be read: {error.strerror or error}"
        ) from error


def missing_files(knobs: PoolKnobs) -> list[str]:
    """The sources that are named like a file and are not there."""
    return [
        source
        for source in knobs.path
        if source not in shipped.SHIPPED
        and Path(source).suffix.lower() in READERS
        and not Path(source).exists()
    ]


# ---------------------------------------------------------------------------------------------
# One row


def _instruction(raw: Raw, knobs: PoolKnobs, kept: Filter) -> Instruction | Rejected | None:
    """The row as an instruction, or why it is rejected; None for a row that is filtered out."""
    if raw.values is None:
        return Rejected(file=raw.file, line=raw.line, reason=raw.reason)
    if not kept.passes(raw.values):
        return None
    try:
        messages, columns = _messages(raw.values, knobs)
        extra = _extra(raw.values, columns, knobs.id_field)
    except ValueError as error:
        reason = str(error)
        if isinstance(error, _NoField) and raw.file.lower().endswith(".csv"):
            reason += "; the first line of a CSV is taken as the columns' names"
        return Rejected(file=raw.file, line=raw.line, reason=reason)
    return Instruction(
        id=instruction_id(messages),
        messages=messages,
        source=f"{raw.file}:{raw.line}",
        extra=extra,
    )


class _NoField(ValueError):
    """The row has not the field of the instruction."""


def _messages(values: Mapping[str, Any], knobs: PoolKnobs) -> tuple[tuple[Message, ...], set[str]]:
    """The instruction with its context, as turns, and the columns that they were read from.

    Raises:
      ValueError: the row cannot be used; says which field, and why.
    """
    path = knobs.instruction_field or usual_field(values)
    has = ", ".join(str(name)[:40] for name in list(values)[:8])
    if not path:
        raise _NoField(
            f"none of the fields {', '.join(USUAL_FIELDS)} has a value; the row has {has}; set "
            f"pool.instruction_field"
        )
    if not column_of(values, path):
        raise _NoField(f"there is no field {path}; the row has {has}")
    if speaker(values, path) not in ("", "user"):
        raise ValueError(
            f"field {path} is the turn of {speaker(values, path)}, not the user's; where it is one "
            f"of a list, name the list in pool.instruction_field"
        )
    turns = _field(partial(opening, name=_last(path)), at_path(values, path), path)
    columns = {column_of(values, path)}
    systems: list[str] = []
    before: list[Message] = []
    texts: list[str] = []
    for name in _beside(path, knobs.context_fields):
        column = column_of(values, name)
        if not column:
            continue
        value, hint = at_path(values, name), "; pool.context_fields tells whether it is read"
        if _last(name) == "history":
            before += _field(earlier, value, name, hint)
        elif _last(name).startswith("system"):
            systems.append(_field(text_of, value, name, hint))
        else:
            texts.append(_field(text_of, value, name, hint))
        columns |= {column} & {name}  # a column that was read in part is kept in `extra`
    user = turns[-1]["content"]
    if not user:
        raise ValueError(f"field {path} is empty")
    systems += [turn["content"] for turn in (*before, *turns) if turn["role"] == "system"]
    said = [turn for turn in before if turn["role"] != "system"]
    said.append(Message(role="user", content=_with_texts(user, texts)))
    messages = with_system(systems, said)
    if sum(len(turn["content"]) for turn in messages) > knobs.max_chars:
        raise ValueError(f"field {path} is longer than pool.max_chars={knobs.max_chars}")
    _check_text("".join(turn["content"] for turn in messages))
    return messages, columns


@lru_cache(maxsize=64)
def _beside(path: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Where the columns of these names may be: at the top of a row, and beside the instruction."""
    places = [group + name for name in names for group in ("", *groups_around(path))]
    # a column that holds the instruction, or is in it, was read already
    return tuple(
        place
        for place in dict.fromkeys(places)
        if not any(
            f"{inner}.".startswith((f"{outer}.", f"{outer}["))
            for inner, outer in ((place, path), (path, place))
        )
    )


def _last(path: str) -> str:
    """The last name of a field path."""
    return path.rpartition(".")[2]


def usual_field(values: Mapping[str, Any]) -> str:
    """The field that an instruction is read from where the knobs name none: the first of
    `USUAL_FIELDS` that has a value, else one that differs from it in capitals; empty if none."""
    small = {str(name).lower(): str(name) for name in values}
    names = [*USUAL_FIELDS, *(small[name] for name in USUAL_FIELDS if name in small)]
    found = ((name, values.get(name)) for name in names)
    return next((name for name, value in found if value and value == value), "")  # not NaN


def _field(read: Any, value: Any, name: str, hint: str = "") -> Any:
    """A field's value as `read` gives it. Raises `ValueError` that names the field."""
    if isinstance(value, Unreadable):
        raise ValueError(f"field {name} cannot be read: {value.reason}{hint}")
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"field {name} {error}{hint}") from None


_NO_INPUT = "<noinput>"
"""The text that Self-Instruct writes where an instruction has no input."""


def _with_texts(user: str, texts: Iterable[str]) -> str:
    """The user's turn, followed by the texts that it does not hold already."""
    for text in texts:
        if text and text != _NO_INPUT and f"\n{text}\n" not in f"\n{user}\n":
            user = f"{user}\n\n{text}"
    return user


def _extra(values: Mapping[str, Any], columns: set[str], id_field: str) -> str:
    """The other columns as JSON; what could not be read is left out."""
    rest = {key: item for key, item in values.items() if key not in columns}
    if id_field:
        rest["source_id"] = at_path(values, id_field)
    kept = {key: item for key, item in rest.items() if not isinstance(item, Unreadable)}
    if not kept:
        return ""
    try:
        text = json.dumps(kept, ensure_ascii=False, sort_keys=True, default=str)
    except TypeError:  # a map of Parquet has keys that are no texts
        text = json.dumps(_text_keys(kept), ensure_ascii=False, sort_keys=True, default=str)
    _check_text(text)
    return text


def _text_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _text_keys(item) for key, item in value.items()}
    return [_text_keys(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_text(text: str) -> None:
    if notation.has_lone_surrogate(text):
        raise ValueError("a text holds half of a surrogate pair")


# ---------------------------------------------------------------------------------------------
# All rows


def collapse(
    rows: Iterable[Instruction | Rejected], counts: dict[str, int], set_aside: list[Rejected]
) -> Iterator[Instruction]:
    """Yield each instruction once. Counts the rows that were read, rejected and duplicate in
    `counts`, and puts the rejected ones into `set_aside`.

    It keeps one id per instruction and the rejected rows in memory, and no texts.
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


class Sample:
    """A sample of `size` instructions: those whose ids' hashes are the lowest. It is the same in
    whatever order they are read, and a larger sample holds a smaller one. Size 0 takes all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.drawn: list[tuple[int, str]] = []
        """A heap of (minus the hash, id): the first entry has the largest hash."""

    def passing(self, rows: Iterable[Instruction]) -> Iterator[Instruction]:
        """Yields the rows that belong to the sample of what was read so far: all of the sample, and
        few others. Only ids are kept in memory."""
        for row in rows:
            place = (-hash_order(row.id, "sample"), row.id)
            if len(self.drawn) < self.size:
                heapq.heappush(self.drawn, place)
            elif self.size and heapq.heappushpop(self.drawn, place) == place:
                continue
            yield row

    def count(self, counts: dict[str, int]) -> None:
        """Correct the number of kept rows, which `collapse` counted before the sample was drawn."""
        left_out = counts["kept"] - len(self.drawn)
        if self.size and left_out:
            counts["kept"], counts["not_sampled"] = len(self.drawn), left_out

    def ids(self) -> frozenset[str]:
        """The ids of the sample; complete once all rows were read."""
        return frozenset(id for _, id in self.drawn)
