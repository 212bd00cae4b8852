"""How is the tokenizer of a GGUF file built?

From what the file holds: vocabulary, merges or scores, kinds of token, and the name of its
pre-tokenizer (`tokenizer.ggml.pre`), which says how text is cut before merging. The cut matters: in
`a  2024`, a `smollm` vocabulary was trained to see the digits one at a time and the two spaces as
one token, and a reader that cuts as GPT-2 does gives ids that the model hardly knows.

The pre-tokenizers are those of the models' published tokenizers; their names are llama.cpp's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from ste_jax.system.errors import RequestError
from ste_jax.tokenization.gguf_metadata import read_gguf_metadata
from ste_jax.tokenization.sentencepiece_model import Pieces, build_backend


@dataclass(frozen=True, kw_only=True)
class GGUFTokenizer:
    """What a GGUF file says about text."""

    backend: Tokenizer
    special: dict[str, str]
    """Names of a Hugging Face tokenizer's special tokens (`eos_token`, ...) to their texts."""
    end_ids: tuple[int, ...]
    """Ids that end a turn or a message, besides the end of sequence."""
    chat_template: str | None


def read_gguf_tokenizer(path: Path) -> GGUFTokenizer:
    """The tokenizer of the GGUF file at `path`: a byte-level BPE or a SentencePiece BPE.

    Raises `RequestError` for a damaged file, one without a tokenizer, and a kind of tokenizer or
    pre-tokenizer that is not known here.
    """
    fields = read_gguf_metadata(path)
    values = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in fields.items()
        if key.startswith("tokenizer.ggml.")
    }
    if not values.get("tokens") or not values.get("token_type"):
        raise RequestError(
            f"{path}: holds no tokenizer (tokenizer.ggml.tokens, tokenizer.ggml.token_type); give "
            "the model as a Hugging Face directory"
        )
    _check(values, f"{path}: tokenizer.ggml")
    kind = values.get("model")
    if not isinstance(kind, str) or kind not in _BUILDERS:
        raise RequestError(
            f"{path}: tokenizer.ggml.model is {kind!r}; known are {', '.join(_BUILDERS)}"
        )
    backend = _BUILDERS[kind](values, path)
    _add_tokens(backend, values)
    template = fields.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise RequestError(f"{path}: tokenizer.chat_template is no text")
    return GGUFTokenizer(
        backend=backend,
        special={
            name: values["tokens"][values[key]] for name, key in _SPECIAL.items() if key in values
        },
        end_ids=tuple(values[key] for key in ("eot_token_id", "eom_token_id") if key in values),
        chat_template=template,
    )


_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


_NO_TOKEN = (-1, 2**32 - 1)
"""Ids with which a file says that there is no such token; the second is the first, unsigned."""


def _check(values: dict[str, Any], where: str) -> None:
    """Raises `RequestError` for a list or an id that is not what it must be, and removes ids that
    stand for "no such token"."""
    for key, kind in (("tokens", str), ("token_type", int), ("scores", float), ("merges", str)):
        held = values.get(key, [])
        if not isinstance(held, list) or any(type(each) is not kind for each in held):
            raise RequestError(f"{where}.{key} is not a list of {_KINDS[kind]} alone")
    tokens, count = values["tokens"], len(values["tokens"])
    if len(values["token_type"]) != count:
        raise RequestError(f"{where}.token_type does not have one kind per token")
    if not set(values["token_type"]) <= set(TokenType):
        raise RequestError(f"{where}.token_type has {max(values['token_type'])}, no kind of token")
    if not all(map(math.isfinite, values.get("scores", ()))):
        raise RequestError(f"{where}.scores holds a number that is not finite")
    if len(set(tokens)) < count:
        first: dict[str, int] = {}
        again = next(i for i, text in enumerate(tokens) if first.setdefault(text, i) != i)
        raise RequestError(
            f"{where}.tokens has {tokens[again]!r} twice, as the ids {first[tokens[again]]} and "
            f"{again}; convert the model again, or give it as a Hugging Face directory"
        )
    for key in [key for key in values if key.endswith("_token_id")]:
        if values[key] in _NO_TOKEN:
            del values[key]
        elif type(values[key]) is not int or not 0 <= values[key] < count:
            raise RequestError(f"{where}.{key} is {values[key]!r:.100}, of {count} tokens")
    if type(values.get("add_space_prefix", True)) is not bool:
        raise RequestError(f"{where}.add_space_prefix is neither true nor false")


_KINDS = {str: "texts", int: "integers", float: "floats"}


def _add_tokens(backend: Tokenizer, values: dict[str, Any]) -> None:
    """Makes control tokens (special) and user-defined ones be matched whole in a text."""
    kinds = list(zip(values["tokens"], values["token_type"], strict=True))
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    backend.add_special_tokens(
        [
            AddedToken(text, normalized=False, special=True)
            for text, kind in kinds
            if kind in special
        ]
    )
    defined = [text for text, kind in kinds if kind == TokenType.USER_DEFINED]
    backend.add_tokens([AddedToken(text, normalized=False) for text in defined])


# ---------------------------------------------------------------------------------------------
# Byte-level BPE


@dataclass(frozen=True)
class _Cut:
    """How text is cut for a byte-level vocabulary, before bytes are spelled as characters."""

    steps: tuple[Any, ...]
    whole_words_first: bool = False
    """A piece that is a token as it stands is that token, even where merges do not lead to it."""
    composed: bool = False
    """Text is brought to Unicode's composed form (NFC) first."""


def _split(*patterns: str) -> tuple[Any, ...]:
    splits = (pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns)
    return (*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))


# This matches words, numbers and other runs, each with at most one space before it; ByteLevel has
# the same built in.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_DIGITS = _Cut((pre_tokenizers.Digits(individual_digits=True), _BYTE_LEVEL))
_LLAMA3 = _Cut(_split(_LATER % "{1,3}"), whole_words_first=True)
_QWEN2 = _Cut(_split(_LATER % ""), composed=True)

_CUTS: dict[str, _Cut] = {
    "gpt-2": _Cut((_BYTE_LEVEL,)),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _Cut(_split(_TEKKEN), whole_words_first=True),
    # What llama.cpp takes for a file that names none.
    "default": _Cut(_split(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}


def _byte_level(values: dict[str, Any], path: Path) -> Tokenizer:
    name = values.get("pre", "default")
    cut = _CUTS.get(name) if isinstance(name, str) else None
    if cut is None:
        raise RequestError(
            f"{path}: tokenizer.ggml.pre is {name!r}; known are {', '.join(_CUTS)}; give the model "
            "as a Hugging Face directory"
        )
    vocab, merges = _vocab(values["tokens"]), []
    for merge in values.get("merges", ()):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise RequestError(f"{path}: tokenizer.ggml.merges has {merge!r}, which makes no token")
        merges.append((left, right))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=cut.whole_words_first))
    if cut.composed:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(cut.steps))
    backend.decoder = decoders.ByteLevel()
    return backend


# ---------------------------------------------------------------------------------------------
# SentencePiece BPE


def _sentencepiece(values: dict[str, Any], path: Path) -> Tokenizer:
    tokens = values["tokens"]
    if len(values.get("scores", ())) != len(tokens):
        raise RequestError(f"{path}: tokenizer.ggml.scores does not have one score per token")
    pieces = Pieces(
        texts=tokens,
        scores=values["scores"],
        kinds=values["token_type"],
        unknown_id=values.get("unknown_token_id", 0),
    )
    # llama.cpp always puts the space there.
    return build_backend(pieces, "always" if values.get("add_space_prefix", True) else "never")


def _vocab(tokens: Sequence[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


_BUILDERS: dict[str, Callable[[dict[str, Any], Path], Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}
