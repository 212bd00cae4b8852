"""Which token ids stand for a text in the assistant's turn?

A text that a model is made to say, or that another model has said, holds marks of thoughts as
text. The model that reads it may have control tokens for these marks, and would not recognize them
spelled out. Such a text must hold no data of the user's: for that there is `Tokenizer.encode`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from ste_jax.prompts import thoughts
from ste_jax.tokenization.control_tokens import Piece


class PieceEncoder(Protocol):
    """What this module needs of a tokenizer."""

    @property
    def control_tokens(self) -> Collection[str]:
        """The texts of the control tokens."""

    def encode_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """The tokens of a text that follows others, given in pieces: text or control tokens."""


def forced_ids(tokenizer: PieceEncoder, text: str) -> list[int]:
    """Ids of a forced text that follows other tokens. Marks of thoughts in it become the model's
    own control tokens, if it has them."""
    pieces = thoughts.pieces(text)
    return tokenizer.encode_pieces(
        _mark(tokenizer, piece) if n % 2 else Piece(piece) for n, piece in enumerate(pieces)
    )


def turn_ids(tokenizer: PieceEncoder, text: str, opened: str) -> list[int]:
    """Ids of a whole turn that another model wrote, with its thoughts marked as this model does it.

    `opened` is the mark that this one's prompt leaves open, if any: it is closed before anything is
    said. Thoughts in which the text was cut off stay open.
    """
    parts = thoughts.split(text)
    known = (pair for pair in thoughts.MARKS if opened in pair)
    if not opened:
        known = (pair for pair in thoughts.MARKS if pair[0] in tokenizer.control_tokens)
    begin, end = next(known, thoughts.MARKS[0])
    pieces = []
    if parts.thoughts:
        pieces += [] if opened else [_mark(tokenizer, begin), Piece("\n")]
        pieces.append(Piece(f"{parts.thoughts}\n"))
    if not parts.open:
        if opened or parts.thoughts:
            pieces += [_mark(tokenizer, end), Piece("\n\n")]
        pieces.append(Piece(parts.said))
    return tokenizer.encode_pieces(pieces)


def _mark(tokenizer: PieceEncoder, mark: str) -> Piece:
    return Piece(mark, control=mark in tokenizer.control_tokens)
