"""Lines are broken between words where a terminal is narrower, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ste_jax.system.terminal import fitted

WORDS = st.text(st.sampled_from("ab#:- \n"), max_size=200)


@given(WORDS, st.integers(20, 60))
def test_no_word_is_broken_or_lost_and_only_long_lines_are_touched(text: str, columns: int) -> None:
    shown = fitted(text, columns)
    assert [word for word in shown.split() if word != "#"] == [
        word for word in text.split() if word != "#"
    ]
    for line in shown.split("\n"):
        assert len(line) <= columns or len(line.split()) <= 2  # one word, and a comment's mark
    if all(len(line) <= columns for line in text.split("\n")):
        assert shown == text
    assert fitted(text, None) == text


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("sft 1: made again since it was", "sft 1: made again\n  since it was"),
        ("  lr was 0.1 and is 0.2 now", "  lr was 0.1 and is\n    0.2 now"),
        ("pico  the small config of tests", "pico  the small\n      config of\n      tests"),
        ("# a comment of several words", "# a comment of\n# several words"),
    ],
)
def test_what_goes_on_begins_below_what_it_belongs_to(line: str, shown: str) -> None:
    assert fitted(line, 20) == shown


def printed(words: list[str], columns: int) -> list[str]:
    """What `ste` prints on a terminal of so many columns, line by line."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, columns))
    code = "import sys; from ste_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=side,
        stderr=side,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(side)
    text = b""
    while True:
        try:
            text += os.read(main, 1 << 16)
        except OSError:  # the other end is closed
            break
    child.wait(60)
    os.close(main)
    return text.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("words", [["--list"], ["--templates"], ["llama-3.1-8b-v5e-8"]])
def test_lists_and_configs_fit_the_terminal(words: list[str]) -> None:
    lines = printed(["config", *words], 80)
    assert len(lines) > 10
    long = [line for line in lines if len(line) > 80 and " " in line.strip(" #")]
    # a value stays on its line, so that what is copied from the terminal is a config still
    assert not [line for line in long if line.lstrip().startswith("#") or ": " not in line]


def test_an_error_is_broken_between_words(tmp_path: Path) -> None:
    lines = printed(["run", str(tmp_path / "nothing.yaml")], 60)
    assert len(lines) > 1 and lines[1].startswith("  ")
    assert all(len(line) <= 60 or " " not in line.strip() for line in lines)
