"""Sampled token ids are cut only where their text is."""

from __future__ import annotations

import pytest

from ste_jax.pipeline.curate import beginning_of
from ste_jax.system.shipped import model_of
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(model_of("pico"))


def test_the_ids_of_a_beginning_are_those_that_were_sampled(tokenizer: Tokenizer) -> None:
    text = "12 + 5 = 17, so it is wrong.\n[[B]]"
    ids = tokenizer.encode(text + "\nThe other one")
    cut = beginning_of(tokenizer, ids, text)
    assert cut == tuple(ids[: len(cut)]) and tokenizer.decode(cut).rstrip() == text


class Words:
    """A tokenizer whose tokens are given."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def decode(self, ids: list[int]) -> str:
        return "".join(self.tokens[id] for id in ids)


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        (("So ", "[[", "A", "]]", "\n\n", "More"), 4),
        (("So ", "[[", "A", "]]\n\n", "More"), 4),  # white space comes along
        (("So ", "[[", "A", "]]\n\nMo", "re"), None),  # and nothing else does
        (("So ", "[[A]]"), 2),
    ],
)
def test_a_token_that_holds_more_than_the_verdict_s_line_is_no_end(tokens, kept) -> None:
    ids = list(range(len(tokens)))
    cut = beginning_of(Words(*tokens), ids, "So [[A]]")  # type: ignore[arg-type]
    assert cut == (None if kept is None else tuple(range(kept)))
