"""The text of tokens that come bit by bit is that of all of them at once."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.decoding.text_stream import TextStream
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import Tokenizer
from tests import chats, sentencepieces


@functools.cache
def read(kind: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as directory:
        if kind in chats.TOKENIZERS:
            path = chats.write(chats.TOKENIZERS[kind](), Path(directory), chats.TEMPLATES["chatml"])
            return load_tokenizer(path)
        path = sentencepieces.write(Path(directory), sentencepieces.LLAMA2, chats.TEMPLATES["inst"])
        return sentencepieces.read(path, "tensorflow_text")


KINDS = [*chats.TOKENIZERS, "tensorflow_text"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_after_every_piece_the_text_is_that_of_all_tokens(kind: str, data: st.DataObject) -> None:
    tokenizer = read(kind)
    # Of texts, and any: bytes that are no character, special tokens, spaces.
    words = st.sampled_from([" a", "a", "  ", "東京", "👍🏽\u200d", "e\u0301", "\n", "[[A]]", ""])
    text = st.lists(words, max_size=12).map(lambda parts: tokenizer.encode("".join(parts)))
    ids = data.draw(text | st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    stream = TextStream(tokenizer.decode)
    begin, shown = 0, ""
    while begin < len(ids):
        end = begin + data.draw(st.integers(1, 4))
        stayed = stream.add(ids[begin:end])
        assert stream.text == tokenizer.decode(ids[:end])
        assert stream.text[:stayed] == shown[:stayed] and len(shown) >= stayed
        begin, shown = end, stream.text


def test_the_work_does_not_grow_with_the_text() -> None:
    decoded = []

    def decode(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return "x" * len(ids)

    stream = TextStream(decode)
    for _ in range(500):
        stream.add([1, 2])
    assert stream.text == "x" * 1000
    assert max(decoded) == 4
