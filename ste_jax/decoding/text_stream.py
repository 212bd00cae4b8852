"""What is the text of tokens that come one after the other?

Decoding all of them again for every few that come would cost the square of their number. A token
may hold a part of a character, and a tokenizer may see a text's first word differently, so tokens
are decoded together with those before them, back to where the text was last whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
"""What stands for bytes that are no character, or none yet."""


class TextStream:
    """A text that grows: always that of all tokens so far, decoded at once."""

    text: str
    """What `decode` gives for all tokens so far."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # Tokens up to `_whole` make `_length` whole characters, those from `_context` the last.
        self._context = self._whole = self._length = 0
        self.text = ""

    def add(self, ids: Sequence[int]) -> int:
        """Takes the tokens that come next; returns how many characters of `text` stayed."""
        self._ids.extend(ids)
        known = self._decode(self._ids[self._context : self._whole])
        found = self._decode(self._ids[self._context :])
        if not found.startswith(known):  # bytes that were characters are none with what follows
            self._context = self._whole = self._length = 0
            self.text = self._decode(self._ids)
            return 0
        stayed = self._length
        self.text = self.text[:stayed] + found[len(known) :]
        if len(found) > len(known) and not found.endswith(_BROKEN):
            self._context, self._whole = self._whole, len(self._ids)
            self._length = len(self.text)
        return stayed
