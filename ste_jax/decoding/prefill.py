"""How is a prompt computed, piece by piece, without computing a piece twice?

One buffer holds one prompt's keys and values. Its pieces are there still from the prompt before, or
come from the store, or are computed, in order; whichever it is, they are the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ste_jax.decoding.caches import Cache
from ste_jax.decoding.chunks import ChunkStore, cut
from ste_jax.decoding.programs import Programs


class Prefiller:
    """Puts prompts into the buffer.

    `computed` and `reused` count the tokens of the prompts that it was given.
    """

    def __init__(self, programs: Programs, *, bucket: int, chunk: int, cache_tokens: int) -> None:
        self._programs = programs
        self._chunk = chunk
        self._store = ChunkStore(cache_tokens // chunk)
        self._holds: list[bytes | None] = [None] * (bucket // chunk)
        self.buffer: Cache = programs.buffer(bucket)
        self.computed = 0
        self.reused = 0

    def run(self, tokens: Sequence[int], user: str) -> None:
        """Makes `buffer` begin with the keys and values of `tokens`, for request `user`."""
        for index, chunk in enumerate(cut(tokens, self._chunk)):
            piece = self._store.get(chunk.name, user)
            if self._holds[index] == chunk.name:
                self.reused += len(chunk.tokens)
                continue
            if piece is not None:
                self.reused += len(chunk.tokens)
                self.buffer = self._programs.load(
                    buffer=self.buffer, piece=piece, start=np.int32(chunk.start)
                )
            else:
                self.computed += len(chunk.tokens)
                padded = np.zeros((1, self._chunk), np.int32)
                padded[0, : len(chunk.tokens)] = chunk.tokens
                self.buffer, piece = self._programs.prefill(self.buffer, padded, chunk.start)
                self._store.put(chunk.name, piece, user)
            self._holds[index] = chunk.name

    def release(self, user: str) -> None:
        """Drops the stored pieces that only this request needs."""
        self._store.release(user)
