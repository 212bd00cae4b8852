"""How does a benchmark's file become pairs of answers with a known better one?

A benchmark is a reader: a function from a file to `Pair` rows, each with its place in the file.
Readers are strict: a row that cannot be read is an error that names file, place and field, since a
benchmark that silently loses rows gives figures that cannot be compared.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from etils import epath

from ste_jax import records
from ste_jax.generation import Message
from ste_jax.records import Pair
from ste_jax.system import notation
from ste_jax.system.errors import RequestError
from ste_jax.system.jsonl import read_jsonl

_LABELS = {"a": 0, "1": 0, "response_a": 0, "b": 1, "2": 1, "response_b": 1}


def read_pairs(benchmark: str, path: epath.PathLike, by: Sequence[str] = ()) -> Iterator[Pair]:
    """The pairs of a benchmark's file, in the file's order; the better answer is `chosen`.

    `source` of a pair is the file's name without its ending. Of equal pairs only the first is kept,
    unless their values in a column of `by` differ. Warnings name the first row that is left out,
    and the first two rows that label a pair in opposite ways (both are kept).

    Raises:
      RequestError: no such benchmark (at once); or, while iterating, a file that cannot be read or
        holds no row, or a malformed row.
    """
    if benchmark not in READERS:
        known = ", ".join(READERS)
        raise RequestError(f"there is no benchmark format named {benchmark!r}; known: {known}")
    return _distinct(READERS[benchmark](epath.Path(path)), epath.Path(path), by)


def _distinct(
    rows: Iterator[tuple[str, Pair]], path: epath.Path, by: Sequence[str]
) -> Iterator[Pair]:
    seen: dict[str, str] = {}
    better: dict[tuple[str, str, str], str] = {}
    repeated: list[str] = []
    opposed: list[str] = []
    for where, pair in rows if not by else _in_sections(list(rows), by):
        if pair.id in seen:
            repeated.append(f"{where} repeats {seen[pair.id]}")
            continue
        seen[pair.id] = where
        better.setdefault((pair.instruction_id, pair.chosen, pair.rejected), where)
        opposite = better.get((pair.instruction_id, pair.rejected, pair.chosen))
        if opposite:
            opposed.append(f"{where} names the answer better that {opposite} names worse")
        yield pair
    if not seen:
        raise RequestError(f"{path} holds no pairs; give a file with at least one row")
    if repeated:
        warnings.warn(
            f"{path}: rows left out because they repeat another: {len(repeated)}; the first: "
            f"{repeated[0]}",
            stacklevel=2,
        )
    if opposed:
        warnings.warn(
            f"{path}: pairs with both labels, on which no judge can be right twice: "
            f"{len(opposed)}; the first: {opposed[0]}",
            stacklevel=2,
        )


def _in_sections(rows: Sequence[tuple[str, Pair]], by: Sequence[str]) -> Iterator[tuple[str, Pair]]:
    """The pairs; one that is in several sections gets an id for each of them."""
    sections: dict[str, set[str]] = defaultdict(set)
    found = []
    for where, pair in rows:
        columns = json.loads(pair.extra or "{}")
        section = json.dumps([str(columns.get(name)) for name in by])
        sections[pair.id].add(section)
        found.append((where, pair, section))
    for where, pair, section in found:
        if len(sections[pair.id]) > 1:
            id = records.content_id("pair in a section", pair.id, section)
            pair = dataclasses.replace(pair, id=id)
        yield where, pair


def _pairs(path: epath.Path) -> Iterator[tuple[str, Pair]]:
    """JSONL of `instruction, response_a, response_b, label`; `label` names the better answer."""
    for place, row in jsonl_rows(path):
        yield place, pair_of(row, path, place, "instruction", "response_a", "response_b")


def _llmbar(path: epath.Path) -> Iterator[tuple[str, Pair]]:
    """LLMBar (arXiv 2310.07641): a JSON array of `input, output_1, output_2, label` (1 or 2)."""
    try:
        rows = notation.from_json(path.read_bytes())
    except ValueError as error:
        raise _not_json(str(path), error) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if not isinstance(rows, list):
        raise RequestError(f"{path} must be a JSON array of rows, not {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        place = f"row {number}"
        yield place, pair_of(row, path, place, "input", "output_1", "output_2")


READERS: Mapping[str, Callable[[epath.Path], Iterator[tuple[str, Pair]]]] = {
    "pairs": _pairs,
    "llmbar": _llmbar,
}


def jsonl_rows(path: epath.Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSONL file for a reader, each with its place in the file.

    Raises:
      RequestError: the file cannot be read, or a line is not JSON; names the line.
    """
    try:
        for number, row, fault in read_jsonl(path):
            if fault:
                raise _not_json(f"{path}, line {number}", fault)
            yield f"line {number}", row
    except OSError as error:
        raise _unreadable(path, error) from error


def pair_of(
    row: Any,
    path: epath.Path,
    place: str,
    asked: str,
    first: str,
    second: str,
    better: Literal["first", "second", "label"] = "label",
) -> Pair:
    """The pair of a benchmark's row; fields that are not read are kept in its `extra`.

    Args:
      row: a JSON value, which should be an object.
      path: the file.
      place: where in the file the row is.
      asked: the field of the instruction.
      first: the field of one answer.
      second: the field of the other answer.
      better: which of the answers is better; "label": the row's field `label` says it.

    Raises:
      RequestError: the row is malformed; names the place and the field.
    """
    where = f"{path}, {place}"
    if not isinstance(row, dict):
        raise RequestError(f"{where} must be a JSON object, not {type(row).__name__}")
    text = _text(row, asked, where)
    answers = (_text(row, first, where), _text(row, second, where))
    if answers[0].strip() == answers[1].strip():
        raise RequestError(
            f"{where}: {first!r} and {second!r} are the same text, of which none is better; "
            f"remove the row"
        )
    read = {asked, first, second} | ({"label"} if better == "label" else set())
    others = {key: value for key, value in row.items() if key not in read}
    at = _label(row, where) if better == "label" else ("first", "second").index(better)
    messages: tuple[Message, ...] = ({"role": "user", "content": text},)
    instruction = records.Instruction(
        id=records.instruction_id(messages), messages=messages, source=path.stem
    )
    pair = records.make_pair(
        instruction,
        chosen=answers[at],
        rejected=answers[1 - at],
        modified_instruction="",
        source=path.stem,
    )
    extra = json.dumps(others, sort_keys=True) if others else ""
    return dataclasses.replace(pair, extra=extra)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise RequestError(f"{where}: the field {key!r} is missing")
    value = row[key]
    if not isinstance(value, str):
        raise RequestError(f"{where}: the field {key!r} must be text, not {type(value).__name__}")
    if not value.strip():
        raise RequestError(f"{where}: the field {key!r} is empty")
    if notation.has_lone_surrogate(value):
        raise RequestError(f"{where}: the field {key!r} holds a lone surrogate")
    return value


def _label(row: dict[str, Any], where: str) -> int:
    if "label" not in row:
        raise RequestError(f"{where}: the field 'label' is missing")
    value = row["label"]
    readable = isinstance(value, (str, int)) and not isinstance(value, bool)
    place = _LABELS.get(str(value).strip().lower()) if readable else None
    if place is None:
        raise RequestError(f"{where}: the field 'label' must be A or B (or 1 or 2), not {value!r}")
    return place


def _not_json(where: str, fault: object) -> RequestError:
    return RequestError(f"{where} is not JSON in UTF-8: {fault}")


def _unreadable(path: epath.Path, error: OSError) -> RequestError:
    return RequestError(f"{path} cannot be read: {error.strerror or error}")
