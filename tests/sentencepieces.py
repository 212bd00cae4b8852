"""Small SentencePiece models of the published forms, as directories with a `tokenizer.model`."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import sentencepiece

from ste_jax.tokenization import sentencepiece_conversion
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import Library, Tokenizer
from tests import chats

TEXTS = [
    *chats.CORPUS,
    "It is   spaced,\tand tabbed; cafe\u0301 or café? 東京で 12 + 30 = 42.",
    "Which of the two is the better answer to the question of the user?",
] * 4

# Neither rewrites a text, and both fall back on bytes.
COMMON = {
    "model_type": "bpe",
    "vocab_size": 460,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "character_coverage": 0.99,
    "split_digits": True,
}
LLAMA2: dict[str, Any] = {**COMMON, "allow_whitespace_only_pieces": True}
"""A space before the text; also that of Mistral 7B and Mixtral."""
MISTRAL3: dict[str, Any] = {**LLAMA2, "control_symbols": ["[INST]", "[/INST]"]}
"""Its instruction marks are pieces, which no text gives."""
GEMMA: dict[str, Any] = {
    **COMMON,
    "add_dummy_prefix": False,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "user_defined_symbols": [
        "<start_of_turn>",
        "<end_of_turn>",
        "\n",
        "\n\n",
        "\n\n\n",
        "\u2581\u2581",
        "\u2581\u2581\u2581",
        "<b>",
        "</b>",
        "<start_of_image>",
    ],
}
"""No space before the text; runs of line ends and of spaces, and marks, are matched whole."""


@functools.cache
def _trained(options: str) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=out,
        hard_vocab_limit=False,
        minloglevel=2,
        **json.loads(options),
    )
    return out.getvalue()


def train(**options: Any) -> bytes:
    """A serialized model."""
    return _trained(json.dumps(options))


def write(directory: Path, options: dict[str, Any], template: str | None, **config: Any) -> Path:
    """A directory with `tokenizer.model`, `tokenizer_config.json` and a chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(train(**options))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


def read(directory: Path, library: Library = "tokenizers") -> Tokenizer:
    """The tokenizer of such a directory, without the seconds of the check by another process: these
    tests hold the libraries against each other themselves."""
    with mock.patch.object(sentencepiece_conversion, "check"):
        return load_tokenizer(directory, library)
