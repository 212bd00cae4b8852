"""What does a GGUF file say about itself, tokens and merges included?

The `gguf` package's reader makes several array views of every string; a vocabulary takes it the
better part of ten seconds. This reads the key-value part in one pass and leaves the tensors alone.
The layout is the GGUF specification's (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3,
little-endian.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from gguf import GGUF_MAGIC, GGUFValueType

from ste_jax.errors import RequestError

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


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Every key of the file at `path` with its value: a number, a bool, a string or a list of them.

    Raises `RequestError` where the file is no GGUF file, or ends or breaks off before its tensors.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data).metadata()
    except (OSError, ValueError, struct.error, OverflowError, RecursionError) as error:
        raise RequestError(f"{path}: not a whole GGUF file ({error}); fetch it again") from error


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def metadata(self) -> dict[str, Any]:
        magic, version = self._numbers("I", 2)
        if magic != GGUF_MAGIC or version not in (2, 3):
            raise ValueError(f"magic {magic:#x}, version {version}")
        _, keys = self._numbers("Q", 2)
        return {self._string(): self._value() for _ in range(keys)}

    def _numbers(self, letter: str, count: int = 1) -> tuple[Any, ...]:
        layout = f"<{count}{letter}"
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        text = self._data[self._at : self._at + length]
        if len(text) != length:
            raise ValueError(f"a string of {length} bytes reaches past the end")
        self._at += length
        return text.decode("utf-8")

    def _value(self) -> Any:
        return self._of_kind(GGUFValueType(self._numbers("I")[0]))

    def _of_kind(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._numbers(_FORMATS[kind])[0]
        (of,), (count,) = self._numbers("I"), self._numbers("Q")
        inner = GGUFValueType(of)
        if inner in _FORMATS:
            return list(self._numbers(_FORMATS[inner], count))
        return [self._of_kind(inner) for _ in range(count)]
