"""Texts that a command is given: as they are, from files, from standard input."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.commands.words import read_texts
from ste_jax.system.errors import RequestError


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@settings(derandomize=True, deadline=None)
@given(st.text())
def test_every_text_can_be_given(text: str) -> None:
    word = f"@{text}" if text.startswith("@") else text
    if word != "-":
        assert read_texts({"--a": word}) == {"--a": text}


@settings(derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",))), st.sampled_from(["", "\n", "\r\n\n"]))
def test_a_file_is_read_as_a_shell_reads_it(text: str, end: str) -> None:
    kept = text.rstrip("\r\n")
    data = (text + end).encode()
    if data[:4:2].count(0) or data[1:4:2].count(0):
        return  # zeros at the beginning are those of UTF-16
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a text"
        path.write_bytes(data)
        assert read_texts({"--a": f"@{path}"}) == {"--a": kept.removeprefix("\ufeff")}


def test_one_text_may_come_through_a_pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("from a file\n")
    piped(monkeypatch, "aus der Röhre\n".encode())
    read = read_texts({"--instruction": "@@mention", "--a": f"@{tmp_path / 'a'}", "--b": "-"})
    assert list(read.values()) == ["@mention", "from a file", "aus der Röhre"]
    piped(monkeypatch, b"x")
    with pytest.raises(RequestError, match="--a and --b are both -"):
        read_texts({"--instruction": "x", "--a": "-", "--b": "-"})


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("@absent", "--a: absent cannot be read: No such file or directory; .* given as @@absent"),
        ("@", "--a: .* cannot be read"),
        ("@latin", "not UTF-8"),
        ("-", "standard input cannot be read: it is UTF-16, not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named(
    word: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    piped(monkeypatch, "text".encode("utf-16"))
    with pytest.raises(RequestError, match=says):
        read_texts({"--a": word})


def test_a_closed_standard_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RequestError, match="standard input cannot be read: it is closed"):
        read_texts({"--a": "-"})
