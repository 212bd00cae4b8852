"""GGUF files that are a part, or damaged, or say a thing twice: never another tensor in silence."""

from __future__ import annotations

import functools
import math
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ste_jax.model_io.gguf import GGUFFile
from ste_jax.model_io.load_weights import open_weights
from ste_jax.system.errors import RequestError
from ste_jax.tokenization.load import load_tokenizer
from tests import ggufs


def test_a_part_of_a_split_file_names_the_parts(tmp_path: Path) -> None:
    ggufs.write(tmp_path / "m.gguf", split=6)
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for number, name in enumerate(names, start=1):
        told = f"part {number} of the 2 of a split model: {names[0]} and {names[1]}; join them"
        for read in (open_weights, load_tokenizer):
            with pytest.raises(RequestError, match=told) as caught:
                read(tmp_path / name)
            assert str(caught.value).startswith(str(tmp_path / name))
    (tmp_path / names[0]).rename(tmp_path / "renamed.gguf")
    with pytest.raises(RequestError, match=r"part 1 of the 2 of a split model; join them"):
        open_weights(tmp_path / "renamed.gguf")


def test_of_many_parts_some_are_named(tmp_path: Path) -> None:
    ggufs.write(tmp_path / "m.gguf", split=1)
    last = "m-00001-of-00011.gguf, m-00002-of-00011.gguf, ... m-00011-of-00011.gguf"
    with pytest.raises(RequestError, match=last):
        open_weights(tmp_path / "m-00003-of-00011.gguf")


def test_a_token_that_is_there_twice_is_named(tmp_path: Path) -> None:
    tokens = list(ggufs.TOKENS)
    tokens[5] = tokens[9]
    path = ggufs.write(tmp_path / "m.gguf", tokens=tokens)
    with pytest.raises(RequestError, match=r"tokens has 'h' twice, as the ids 5 and 9"):
        load_tokenizer(path)


# ---------------------------------------------------------------------------------------------
# Damaged files


@functools.cache
def whole() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        return ggufs.write(Path(directory, "m.gguf")).read_bytes()


HEAD = len(whole()) - sum(-(-4 * math.prod(shape) // 32) * 32 for shape in ggufs.SHAPES.values())
"""How many bytes stand before the tensors."""


def held(path: Path) -> None:
    """That every tensor which the file gives is the one of that name."""
    file = open_weights(path)
    for name, shape in ggufs.SHAPES.items():
        found = file.read(name, tuple(slice(0, size) for size in shape))
        np.testing.assert_array_equal(found, np.full(shape, ggufs.NUMBERS[name]), name)


def tensor_fields(data: bytes, name: str) -> dict[str, int]:
    """Where the fields of a tensor stand that follow its name."""
    at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    count = len(ggufs.SHAPES[name])
    return {
        "dimensions": at,
        "first": at + 4,
        "type": at + 4 + 8 * count,
        "offset": at + 8 + 8 * count,
    }


def changed(at: int, new: bytes) -> bytes:
    return whole()[:at] + new + whole()[at + len(new) :]


def test_the_whole_file_is_right(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(whole())
    held(tmp_path / "m.gguf")
    assert load_tokenizer(tmp_path / "m.gguf").decode([2, 3]) == "ab"


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.0.ffn_down.weight"])
@pytest.mark.parametrize(
    ("field", "layout", "value"),
    [
        # Past the end, wrapped around to another tensor, beside the alignment, and on another.
        ("offset", "<Q", 2**40),
        ("offset", "<Q", 2**64 - 512),
        ("offset", "<Q", 7),
        ("offset", "<Q", 0),
        ("first", "<Q", 2**63),
        ("first", "<Q", 0),
        ("first", "<Q", 4),
        # Of numbers half as wide, of which half would be read.
        ("type", "<I", 1),
        ("type", "<I", 8),
        ("type", "<I", 999),
        ("dimensions", "<I", 2**31),
    ],
)
def test_a_wrong_number_of_a_tensor_is_refused(
    name: str, field: str, layout: str, value: int, tmp_path: Path
) -> None:
    at = tensor_fields(whole(), name)[field]
    (tmp_path / "m.gguf").write_bytes(changed(at, struct.pack(layout, value)))
    with pytest.raises(
        RequestError, match=r"m\.gguf: not a whole GGUF file \(.+\); fetch it again"
    ):
        GGUFFile(tmp_path / "m.gguf")


def test_a_key_or_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    data = whole()
    again = data.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight")
    (tmp_path / "m.gguf").write_bytes(again)
    with pytest.raises(RequestError, match=r"tensor blk\.0\.attn_q\.weight twice"):
        open_weights(tmp_path / "m.gguf")
    again = data.replace(b"llama.context_length", b"llama.rope.freq_base")
    (tmp_path / "m.gguf").write_bytes(again)
    with pytest.raises(RequestError, match=r"key llama\.rope\.freq_base twice"):
        open_weights(tmp_path / "m.gguf")


def test_more_than_the_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(whole() + b"\0" * 64)
    with pytest.raises(RequestError, match="the file goes on"):
        open_weights(tmp_path / "m.gguf")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    at=st.integers(0, HEAD - 1),
    new=st.binary(min_size=1, max_size=8)
    | st.sampled_from([2**64 - 1, 2**63, 2**32 - 1, 0, 1]).map(lambda n: struct.pack("<Q", n)),
)
@example(at=8, new=struct.pack("<Q", 2**60))
@example(at=16, new=struct.pack("<Q", 2**60))
def test_changed_bytes_give_the_same_tensors_or_a_sentence(at: int, new: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "m.gguf")
        path.write_bytes(changed(at, new[: HEAD - at]))
        for read in (held, load_tokenizer):
            try:
                read(path)
            except RequestError as error:
                assert str(path) in str(error) and "\n" not in str(error)
