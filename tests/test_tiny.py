"""Can a test give the tiny model the words of a task of its own?"""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import load_file
from tokenizers import Tokenizer

from tests import tiny


def test_words_are_tokens_of_their_own_with_their_biases(tmp_path: Path) -> None:
    words = {"▁BETTER:": 1.5, "▁[[7]]": 2.5, "7]]": -1.5}
    tiny.write_model(tmp_path, words=words, verdicts="[AB]|7", layers=1, **{"A]]": 4.0})
    names = tiny.vocabulary(words)
    assert names == [*tiny.vocabulary(), *words]
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode(" BETTER: apple7]]").tokens == ["▁BETTER:", "▁apple", "7]]"]
    assert tokenizer.encode(" appleA]] [[7]]").tokens == ["▁apple", "A]]", "▁[[7]]"]
    head = load_file(tmp_path / "model.safetensors")["lm_head.weight"]
    biases = {name: float(head[names.index(name), 0]) for name in (*words, "A]]")}
    assert biases == {**words, "A]]": 4.0}
