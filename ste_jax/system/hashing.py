"""How is a text or a file hashed?

All hashes are BLAKE2b. They are the ids of rows, the fingerprints of finished work and the seeds of
random draws, so they are format: no digest may ever change. Text is hashed as UTF-8, with halves of
surrogate pairs as if they were characters.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol


class Hasher(Protocol):
    """A hash that is fed piece by piece."""

    def update(self, data: Any, /) -> None:
        """Takes in more bytes, or an array's."""

    def digest(self) -> bytes:
        """The hash of what was taken in."""

    def hexdigest(self) -> str:
        """The hash of what was taken in, as hexadecimal digits."""


def hasher(size: int = 16) -> Hasher:
    """A new hash of `size` bytes, to be fed piece by piece."""
    return hashlib.blake2b(digest_size=size)


def digest(data: str | bytes, size: int = 16) -> bytes:
    """The hash of a text or of bytes, in `size` bytes."""
    return hashlib.blake2b(_bytes(data), digest_size=size).digest()


def hex_digest(data: str | bytes, size: int = 16) -> str:
    """The hash of a text or of bytes, in `size` bytes, as hexadecimal digits."""
    return digest(data, size).hex()


def file_digest(path: Path) -> str:
    """The hash of a file's content, in 64 bytes, as hexadecimal digits.

    Raises:
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def number(data: str | bytes, size: int = 8, purpose: bytes = b"") -> int:
    """The hash of a text or of bytes as a whole number below 256^`size`. Numbers for different
    `purpose`s are independent of each other."""
    hashed = hashlib.blake2b(_bytes(data), digest_size=size, person=purpose)
    return int.from_bytes(hashed.digest(), "big")


def number31(data: str | bytes) -> int:
    """The hash of a text or of bytes as a whole number below 2^31, for use as a seed."""
    return number(data, 4) >> 1


def _bytes(data: str | bytes) -> bytes:
    return data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
