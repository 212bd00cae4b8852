"""Which rows do the stages hand to each other, and how are they kept in a file?

Each table is one frozen dataclass here and one Parquet schema derived from it. Ids are content
hashes: the same input gives the same id on any machine. Tables are read by
`datasets.load_dataset("parquet", ...)` and pandas as they are; the schema's metadata holds
`schema_version`. Measured floats have tables of their own, so that the other tables can be compared
byte for byte.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import types
import typing
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ste_jax.generation import Message
from ste_jax.system import hashing
from ste_jax.system.errors import WorkError

SCHEMA_VERSION = 1

Split = Literal["train", "validation", "heldout"]
NOT_ASKED = ("error", "too_long")
"""The failures of a prompt that no model answered: it could not be asked, or it did not fit."""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """An instruction of the pool. `messages` ends with a user turn; `extra` holds the source row's
    other columns as JSON."""

    id: str
    messages: tuple[Message, ...]
    source: str
    category: str | None = None
    difficulty: int | None = None
    split: str | None = None
    extra: str = ""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What the classifying model said of an instruction. `text` is its reply, empty when scored."""

    id: str
    category: str | None
    difficulty: int | None
    failure: str | None
    text: str


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """Log-probability of one label of one instruction, before and after calibration (nats)."""

    id: str
    kind: str
    label: str
    logprob: float
    calibrated: float


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What select decided on one instruction: its `fate` is `kept`, or the reason why not."""

    id: str
    fate: str
    detail: str
    category: str | None
    difficulty: int | None
    split: str | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to `messages` whose order of merit is known by construction (or by a label)."""

    id: str
    instruction_id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    modified_instruction: str
    source: str
    extra: str = ""
    """For labelled pairs: the file's other columns as JSON."""


@dataclass(frozen=True, kw_only=True)
class DroppedPair:
    """An instruction that gave no pair: the reason, and the text that shows it."""

    id: str
    reason: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt of the judge, in one of its task's orders. `label` is the verdict that is right,
    empty where no verdict on the prompt by itself is right or wrong (see `ste_jax.tasks`)."""

    id: str
    pair_id: str
    order: str
    messages: tuple[Message, ...]
    label: str


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """One sampled reasoning trace.

    `verdict` is as printed. `failure` is why the text the judge ended by itself held none (null
    when it did), or one of `NOT_ASKED`, with the reason as `text`; `forced` says that the verdict
    was then drawn by force. `token_ids` are all ids of the assistant's turn as they were sampled or
    forced, `free_tokens` of them before any force."""

    id: str
    prompt_id: str
    judge: str
    iteration: int
    sample: int
    text: str
    token_ids: tuple[int, ...]
    verdict: str | None
    failure: str | None
    forced: bool
    finish_reason: str
    free_tokens: int


@dataclass(frozen=True, kw_only=True)
class TrainingExample:
    """A row of training: a prompt, and the token ids that were sampled for it.

    In a table of preferences it also holds a failed judgment, `rejected`, and the kind of its
    failure, `negative` (`incorrect` or `unparsed`)."""

    id: str
    prompt_id: str
    judgment_id: str
    label: str
    """The verdict that is learnt."""
    messages: tuple[Message, ...]
    completion: str
    completion_ids: tuple[int, ...]
    forced: bool
    rejected: str | None = None
    rejected_ids: tuple[int, ...] | None = None
    rejected_judgment_id: str | None = None
    rejected_cut_off: bool | None = None
    negative: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReferenceScore:
    """Log-probabilities (nats) of the two judgments of a preference, each as a whole, by the model
    that DPO starts from. `id` is that of the preference."""

    id: str
    chosen_logprob: float
    rejected_logprob: float


Row = TypeVar("Row")


def content_id(kind: str, *parts: object) -> str:
    """A 128-bit hash, in hex, of what a row is made of. JSON keeps part borders unambiguous."""
    text = json.dumps([kind, *parts], ensure_ascii=False, sort_keys=True)
    return hashing.hex_digest(text)


def shard_of(id: str, shards: int) -> int:
    """The shard that a row with this id belongs to."""
    return hashing.number(id, purpose=b"shard") % shards


def hash_order(id: str, purpose: str) -> int:
    """A number to sort by, for an order that is fixed and has nothing to do with the content."""
    return hashing.number(f"{purpose}\0{id}")


def instruction_id(messages: Sequence[Message]) -> str:
    """The id of an instruction: its turns, nothing else."""
    return content_id("instruction", [[turn["role"], turn["content"]] for turn in messages])


def make_pair(
    instruction: Instruction,
    *,
    chosen: str,
    rejected: str,
    modified_instruction: str,
    source: str,
) -> Pair:
    """A pair with its content hash."""
    id = content_id("pair", instruction.id, chosen, rejected, modified_instruction, source)
    return Pair(
        id=id,
        instruction_id=instruction.id,
        messages=instruction.messages,
        chosen=chosen,
        rejected=rejected,
        modified_instruction=modified_instruction,
        source=source,
    )


_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_ARROW: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    tuple[Message, ...]: pa.list_(_MESSAGE),
    tuple[int, ...]: pa.list_(pa.int32()),
}


SEALED = b"sealed"


def schema(row_type: type[Any]) -> pa.Schema:
    """The Parquet schema of a table of `row_type`."""
    hints = typing.get_type_hints(row_type)
    columns = []
    for field in dataclasses.fields(row_type):
        hint = hints[field.name]
        nullable = isinstance(hint, types.UnionType)
        if nullable:
            (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
        columns.append(pa.field(field.name, _ARROW[hint], nullable=nullable))
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "table": row_type.__name__,
        SEALED: "yes",
    }
    return pa.schema(columns, metadata=metadata)


def to_parquet(rows: Iterable[Any], row_type: type[Any]) -> bytes:
    """A Parquet file's bytes; the same rows give the same bytes (one library version).

    A hash of all other bytes is put between the pages and the footer, where readers do not look: so
    a flipped bit is found wherever it is, also in the footer."""
    names = [field.name for field in dataclasses.fields(row_type)]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for row in rows:
        for name in names:
            columns[name].append(getattr(row, name))
    table = pa.Table.from_pydict(columns, schema=schema(row_type))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    data = buffer.getvalue()
    place = _footer_of(data)
    return data[:place] + _SEAL + _digest(data[:place], data[place:]) + data[place:]


_SEAL, _DIGEST_BYTES = b"ste_jax seal 1: ", 16


def _footer_of(data: bytes) -> int:
    """The place where a Parquet file's footer begins; its length precedes the last four bytes."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _digest(*parts: bytes) -> bytes:
    digest = hashing.hasher(_DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


def open_parquet(data: bytes, name: str) -> pq.ParquetFile:
    """Opens a table of ours and checks that it is whole; `name` is what an error calls it.

    Files of earlier versions have no hash and no checksums, so they are not checked.

    Raises:
      WorkError: its bytes are not those that were written, or it is of another version.
    """
    footer = _footer_of(data)
    seal = max(0, footer - len(_SEAL) - _DIGEST_BYTES)
    sealed = data[seal:].startswith(_SEAL)
    if sealed and data[seal + len(_SEAL) : footer] != _digest(data[:seal], data[footer:]):
        raise WorkError(damaged(name, "its bytes are not those that were written"))
    try:
        table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise WorkError(damaged(name, str(error))) from error
    metadata = table.schema_arrow.metadata or {}
    if metadata.get(SEALED) and not sealed:
        raise WorkError(damaged(name, "its bytes are not those that were written"))
    found = metadata.get(b"schema_version", b"none").decode(errors="replace")
    if found != str(SCHEMA_VERSION):
        raise WorkError(
            f"{name} has schema_version {found}, this version reads {SCHEMA_VERSION}; read it with "
            "the version that made the run, or start a new run"
        )
    return table


def damaged(name: str, reason: str) -> str:
    """The error message for a table that is not as it was written."""
    reason = " ".join(reason.split())
    return (
        f"{name} is damaged ({reason}): put a copy of it back, or move this one file away and run "
        "again: its rows, and no others, are made anew"
    )


def from_parquet(data: bytes, row_type: type[Row], name: str) -> list[Row]:
    """The rows of a Parquet file's bytes; `name` is what an error calls it. Raises as
    `open_parquet`."""
    parquet = open_parquet(data, name)
    try:
        table = parquet.read()
    except (pa.ArrowException, OSError) as error:
        raise WorkError(damaged(name, str(error))) from error
    return [as_row(values, row_type) for values in table.to_pylist()]


def as_row(values: dict[str, Any], row_type: type[Row]) -> Row:
    """A row of the plain values of its fields: lists become tuples again."""
    for key in _listed(typing.cast(Hashable, row_type)):
        if values.get(key) is not None:
            values[key] = tuple(values[key])
    return row_type(**values)


@functools.cache
def _listed(row_type: Any) -> list[str]:
    """The fields of a row that hold several values."""
    hints = typing.get_type_hints(row_type)
    return [key for key, hint in hints.items() if "tuple" in str(hint)]
