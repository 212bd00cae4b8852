"""How does SentencePiece itself encode and decode, without data becoming a control token?

It runs in tensorflow-text, on a copy of the model in which every control token is of a kind that
SentencePiece never finds in a text. Control tokens of a chat template become ids without its help,
and the stretches of text between them are encoded each alone.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gguf import TokenType

from ste_jax.system.errors import RequestError
from ste_jax.tokenization.control_tokens import Piece
from ste_jax.tokenization.sentencepiece_model import SPACE, SentencePieceModel, parse


class SentencePieceCoder:
    """The same as `control_tokens.TokenizersCoder`, by tensorflow-text on a `tokenizer.model`."""

    def __init__(
        self,
        model: SentencePieceModel,
        vocab: Mapping[str, int],
        added: Mapping[int, str],
        control: Mapping[str, int],
        special_ids: Iterable[int],
    ) -> None:
        """`vocab` is the whole vocabulary and `added` the tokens in it that a text is first
        searched for. Data never gives those in `control`, and decoding can leave out the special
        ones.

        Raises `RequestError` for a model of another vocabulary, and where tensorflow-text is not
        installed.
        """
        proto = parse(model.serialized, "tokenizer.model")
        behind = {text: i for i, text in added.items() if i >= len(proto.pieces)}
        last = max(vocab.values())
        if last > max([len(proto.pieces) - 1, *added]):
            raise _another(f"it has no piece {last}")
        for i in range(len(proto.pieces), max(added, default=0) + 1):
            if i not in added:
                raise _another(f"it has no piece {i}, and there are added tokens after it")
            proto.pieces.add()
        for i, piece in enumerate(proto.pieces):
            if i not in added:
                if vocab.get(piece.piece) != i:
                    raise _another(f"its piece {i} is {piece.piece!r}")
            elif piece.type != TokenType.UNKNOWN:
                piece.piece = added[i].replace(" ", SPACE)
                piece.type = TokenType.CONTROL if added[i] in control else TokenType.USER_DEFINED
        # As `transformers` does: what is added behind the pieces is looked for before them.
        self._behind = {text: i for text, i in behind.items() if text not in control}
        longest_first = sorted(self._behind, key=len, reverse=True)
        self._whole = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._prefix = model.prefix
        self._size = len(proto.pieces)
        self._control = dict(control)
        self._texts = {i: text for text, i in control.items()}
        self._special_ids = frozenset(special_ids)
        proto.normalizer_spec.add_dummy_prefix = False
        self._library = _Library(proto.SerializeToString())
        proto.normalizer_spec.add_dummy_prefix = True
        self._with_prefix = _Library(proto.SerializeToString())

    def encode(
        self, batch: Iterable[Iterable[Piece]], *, continues: bool = False
    ) -> list[list[int]]:
        """The ids of each text's pieces, joined, as `TokenizersCoder.encode` gives them."""
        texts: list[str] = []
        prefixed: list[bool] = []
        plans: list[list[int | None]] = []  # a control token's id, or None for the next text
        for pieces in batch:
            plan: list[int | None] = []
            plans.append(plan)
            begins = not continues
            for token, text in self._stretches(pieces):
                plan.append(token)
                if token is None:
                    texts.append(text)
                    first = self._prefix == "first" and begins
                    prefixed.append(first or self._prefix == "always")
                begins = False
        encoded = {
            kind: iter(library.encode(list(itertools.compress(texts, chosen))))
            for kind, library, chosen in (
                (True, self._with_prefix, prefixed),
                (False, self._library, [not each for each in prefixed]),
            )
        }
        in_order = iter([next(encoded[kind]) for kind in prefixed])
        return [
            [i for step in plan for i in (next(in_order) if step is None else (step,))]
            for plan in plans
        ]

    def _stretches(self, pieces: Iterable[Piece]) -> Iterator[tuple[int | None, str]]:
        """The control tokens, with their ids, and the texts between them (with None)."""
        for control, group in itertools.groupby(pieces, key=lambda piece: piece.control):
            if control:
                yield from ((self._control[piece.text], piece.text) for piece in group)
            else:
                for text in self._whole.split("".join(piece.text for piece in group)):
                    if text:
                        yield self._behind.get(text), text

    def decode(self, batch: Iterable[Sequence[int]], skip_special: bool) -> list[str]:
        """The text of each list of ids, as `TokenizersCoder.decode` gives it."""
        runs: list[list[int]] = []
        plans: list[list[str | None]] = []  # a control token's text, or None for the next run
        for ids in batch:
            left_out = self._special_ids if skip_special else frozenset()
            kept = (i for i in ids if 0 <= i < self._size and i not in left_out)
            plan: list[str | None] = []
            plans.append(plan)
            for control, group in itertools.groupby(kept, key=self._texts.__contains__):
                if control:
                    plan.extend(self._texts[i] for i in group)
                else:
                    plan.append(None)
                    runs.append(list(group))
        decoded = iter(self._library.decode(runs))
        texts = []
        for plan in plans:
            text = "".join(next(decoded) if step is None else step for step in plan)
            strips = self._prefix != "never" and plan and plan[0] is None
            texts.append(text.removeprefix(" ") if strips else text)
        return texts


def _another(why: str) -> RequestError:
    return RequestError(f"tokenizer.model is not the model of this tokenizer: {why}")


class _Library:
    """One model in tensorflow-text."""

    def __init__(self, serialized: bytes) -> None:
        _, tensorflow_text = _tensorflow()
        self._tokenizer = tensorflow_text.SentencepieceTokenizer(model=serialized)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer.tokenize(texts).to_list() if texts else []
        return found

    def decode(self, batch: Sequence[Sequence[int]]) -> list[str]:
        if not batch:
            return []
        tf, _ = _tensorflow()
        ids = tf.RaggedTensor.from_row_lengths(
            tf.constant(list(itertools.chain(*batch)), tf.int32), [len(each) for each in batch]
        )
        texts = self._tokenizer.detokenize(ids).numpy()
        return [text.decode("utf-8", errors="replace") for text in texts]


@functools.cache
def _tensorflow() -> tuple[Any, Any]:
    """TensorFlow and its text operations, kept off the devices that JAX computes on."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
        import tensorflow_text
    except ImportError as error:
        raise RequestError(
            f"a tokenizer.model is read by tensorflow-text, which cannot be imported ({error}); "
            "install it, or give a tokenizer.json"
        ) from error
    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow, tensorflow_text
