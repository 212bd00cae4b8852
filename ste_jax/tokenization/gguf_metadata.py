"""What does a GGUF file say about itself, and where in the file is each tensor?

The `gguf` package's reader makes several array views of every string, which takes a vocabulary the
better part of ten seconds, and trusts the numbers of a file: an offset that wraps around gives the
bytes of another tensor. This module reads what stands before the tensors in one pass, with Python's
integers, and checks every place against the file. The layout is the GGUF specification's
(github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType

from ste_jax.system.errors import RequestError

_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_MOST_DIMENSIONS = 4
_ALIGNMENT = 32
_DEEPEST = 8
"""How deep lists may be nested; real files have no lists within lists."""


@dataclass(frozen=True, kw_only=True)
class GGUFTensor:
    """A tensor of a file: its name, its shape, its type, and its place."""

    name: str
    shape: tuple[int, ...]
    """In PyTorch's order: numbers along the last dimension lie side by side."""
    kind: GGMLQuantizationType
    start: int
    """The place in the file of its first byte."""
    size: int
    """In bytes."""


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Every key of the file at `path` with its value: a number, a bool, a string or a list of them.

    Raises `RequestError` where the file is no GGUF file, ends or breaks off before its tensors, or
    is a part of a model.
    """
    return read_gguf(path, tensors=False)[0]


def read_gguf(path: Path, tensors: bool = True) -> tuple[dict[str, Any], list[GGUFTensor]]:
    """The metadata, as `read_gguf_metadata` gives it, and the file's tensors. None of these reaches
    past the file's end or into another tensor."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data)
            count, values = cursor.metadata()
            _refuse_a_part(path, values)
            return values, cursor.tensors(count, values) if tensors else []
    except (OSError, ValueError, struct.error, OverflowError) as error:
        raise RequestError(f"{path}: not a whole GGUF file ({error}); fetch it again") from error


def _refuse_a_part(path: Path, values: Mapping[str, Any]) -> None:
    count, number = values.get("split.count", 0), values.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(number, int):
        raise ValueError(f"split.count is {count!r} and split.no {number!r}")
    if count <= 1:
        return
    named = re.fullmatch(r"(.+)-\d{5}-of-\d{5}\.gguf", path.name)
    parts = ""
    if named:
        places = range(1, count + 1) if count <= 4 else (1, 2, count)
        names = [f"{named[1]}-{place:05}-of-{count:05}.gguf" for place in places]
        parts = ": " + ", ".join(names[:-1]) + (", ... " if count > 4 else " and ") + names[-1]
    raise RequestError(
        f"{path}: is part {number + 1} of the {count} of a split model{parts}; join them with "
        "llama.cpp's `llama-gguf-split --merge` and give the whole file"
    )


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def metadata(self) -> tuple[int, dict[str, Any]]:
        """How many tensors there are, and all keys."""
        magic, version = self._numbers("I", 2)
        if magic != GGUF_MAGIC or version not in (2, 3):
            raise ValueError(f"magic {magic:#x}, version {version}")
        tensors, keys = self._numbers("Q", 2)
        values: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            if key in values:
                raise ValueError(f"it has the key {key} twice")
            values[key] = self._value()
        return tensors, values

    def tensors(self, count: int, values: Mapping[str, Any]) -> list[GGUFTensor]:
        """All tensors, checked against the file's length and each other."""
        alignment = values.get("general.alignment", _ALIGNMENT)
        if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        headers = [self._tensor() for _ in range(count)]
        begin = _up(self._at, alignment)
        held = len(self._data) - begin
        found: dict[str, GGUFTensor] = {}
        end = 0
        for name, shape, kind, offset in headers:
            block, bytes_ = GGML_QUANT_SIZES[kind]
            if name in found:
                raise ValueError(f"it has the tensor {name} twice")
            if not 1 <= len(shape) <= _MOST_DIMENSIONS or min(shape) < 1 or shape[-1] % block:
                raise ValueError(f"tensor {name} of type {kind.name} has the shape {list(shape)}")
            size = math.prod(shape) // block * bytes_
            # Tensors follow each other without a gap, so that a wrong place or type shows.
            if offset != _up(end, alignment):
                raise ValueError(f"tensor {name} lies at {offset} and not at {_up(end, alignment)}")
            end = offset + size
            if end > held:
                raise ValueError(f"tensor {name} ends at {end}, and all tensors have {held} bytes")
            found[name] = GGUFTensor(
                name=name, shape=shape, kind=kind, start=begin + offset, size=size
            )
        if found and held > _up(end, alignment):
            raise ValueError(f"its tensors end at {end}, and the file goes on to {held}")
        return list(found.values())

    def _tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        (dimensions,) = self._numbers("I")
        shape = tuple(reversed(self._numbers("Q", dimensions)))
        (kind,), (offset,) = self._numbers("I"), self._numbers("Q")
        return name, shape, GGMLQuantizationType(kind), offset

    def _numbers(self, format: str, count: int = 1) -> tuple[Any, ...]:
        width = struct.calcsize(f"<{format}")
        if count * width > len(self._data) - self._at:
            raise ValueError(f"{count} numbers of {width} bytes reach past the end")
        values = struct.unpack_from(f"<{count}{format}", self._data, self._at)
        self._at += count * width
        return values

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        if length > len(self._data) - self._at:
            raise ValueError(f"a string of {length} bytes reaches past the end")
        text = self._data[self._at : self._at + length]
        self._at += length
        return text.decode("utf-8")

    def _value(self) -> Any:
        return self._of_kind(GGUFValueType(self._numbers("I")[0]), 0)

    def _of_kind(self, kind: GGUFValueType, depth: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._numbers(_FORMATS[kind])[0]
        (of,), (count,) = self._numbers("I"), self._numbers("Q")
        inner = GGUFValueType(of)
        if inner in _FORMATS:
            return list(self._numbers(_FORMATS[inner], count))
        if depth == _DEEPEST:
            raise ValueError("lists within lists without an end")
        return [self._of_kind(inner, depth + 1) for _ in range(count)]


def _up(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment
