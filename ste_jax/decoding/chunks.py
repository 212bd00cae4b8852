"""Which pieces of prompts have been computed already?

Prompts are cut at fixed places (multiples of the chunk), and a piece is named by all tokens up to
its end. So prompts with the same beginning share its pieces, a second wave of samples finds its
prompt again, and a piece from the store is bit for bit the one that would have been computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ste_jax.system import hashing


@dataclass(frozen=True)
class Chunk:
    """A piece of a prompt."""

    start: int
    tokens: tuple[int, ...]
    name: bytes
    """Digest of all tokens of the prompt up to the end of this piece."""


def cut(tokens: Sequence[int], size: int) -> list[Chunk]:
    """The pieces of `tokens`, each of `size` but the last, which may be shorter."""
    digest = hashing.hasher()
    chunks = []
    for start in range(0, len(tokens), size):
        piece = tuple(tokens[start : start + size])
        digest.update(np.asarray(piece, np.int64).tobytes())
        chunks.append(Chunk(start, piece, digest.digest()))
    return chunks


class ChunkStore:
    """Computed pieces by name; the least recently used go when there are more than `capacity`."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[bytes, Any] = OrderedDict()
        # A piece that one user alone has asked for is its own, and goes when it is released.
        self._owner: dict[bytes, str] = {}
        self._owned: dict[str, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: bytes, user: str) -> Any | None:
        """The piece for `user` (a request's id), or None."""
        if name not in self._values:
            return None
        self._values.move_to_end(name)
        if self._owner.get(name, user) != user:
            self._disown(name)
        return self._values[name]

    def put(self, name: bytes, value: Any, user: str) -> None:
        """Keeps a piece that `user` computed."""
        if self._capacity < 1:
            return
        self._values[name] = value
        self._owner[name] = user
        self._owned.setdefault(user, set()).add(name)
        while len(self._values) > self._capacity:
            gone, _ = self._values.popitem(last=False)
            self._disown(gone)

    def release(self, user: str) -> None:
        """Drops the pieces that only `user` has asked for, which needs them no more."""
        for name in self._owned.pop(user, set()):
            del self._owner[name]
            del self._values[name]

    def _disown(self, name: bytes) -> None:
        owner = self._owner.pop(name, None)
        if owner is not None:
            self._owned[owner].discard(name)
            if not self._owned[owner]:
                del self._owned[owner]
