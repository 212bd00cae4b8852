"""The blocks of a page, and their commands, run in this process."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence

from ste_jax.cli import main
from tests.running import REPOSITORY


def text(page: str) -> str:
    """The page of that name in the repository."""
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str, *kinds: str) -> Iterator[tuple[str, str]]:
    """The kind and the text of each block of these kinds, in the page's order."""
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", text(page), re.DOTALL | re.MULTILINE):
        if kind in kinds:
            yield kind, block


def commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a block of shell, without its comments."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def run_shell(block: str) -> None:
    """Run a block of shell that has `ste`, `export` and `echo` alone, with `>`, `>>` and `|`.

    `ste` runs in this process, and must end well; `ste judge` may give no verdict.
    """
    for words in commands(block):
        said = ""
        for part in _parts([os.path.expandvars(word) for word in words], "|"):
            said = _one(*_parts(part, ">", ">>"), said=said, mode="a" if ">>" in part else "w")


def _parts(words: list[str], *marks: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for word in words:
        if word in marks:
            found.append([])
        else:
            found[-1].append(word)
    return found


def _one(words: list[str], file: Sequence[str] = (), *, said: str, mode: str) -> str:
    """Run one command, which reads what was `said`; returns what an `echo` says."""
    if words[0] == "export":
        name, _, value = words[1].partition("=")
        os.environ[name] = value
        return ""
    if words[0] == "echo":
        text = " ".join(words[1:]) + "\n"
        if file:
            with open(file[0], mode, encoding="utf-8") as out:
                out.write(text)
        return text
    assert words[0] == "ste" and not file, words
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(said.encode()), encoding="utf-8")
    try:
        status = main(words[1:])
        # the tiny judge, asked in words that it does not know, need not find a verdict
        assert status == 0 or (words[1] == "judge" and status == 3), words
    finally:
        sys.stdin = before
    return ""
