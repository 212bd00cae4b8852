"""How is a text from outside shown on a terminal so that it can only be read?

A model's words may hold characters that move a terminal's cursor, clear its screen, or reverse the
order of letters, so that a reader sees another text. Such characters are shown by their numbers.
Files keep a text as it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TextIO

# This matches all controls but tab and line feed; the marks, embeddings, overrides and isolates of
# writing direction; line and paragraph separators; and halves of surrogate pairs.
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff\ufeff]"
)


aside: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
"""A context in which a text is printed; lines of progress that are drawn step aside meanwhile."""


def harmless(text: str) -> str:
    """The text with every character that could do something written as `\\uXXXX`, as in JSON."""
    return _ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def say(text: str, *, fit: bool = False) -> None:
    """Print a text on standard output, harmless (see `show`). With `fit`, a terminal gets it as
    `fitted`."""
    show(fitted(text, width(sys.stdout)) if fit else text, sys.stdout)


def width(stream: TextIO | None) -> int | None:
    """How many columns the terminal has that a stream is; None if it is none."""
    if stream is None or stream.closed or not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL
    except OSError:
        return _USUAL


def narrowed(columns: int) -> int:
    """So many columns, or as many as standard output has if that is a narrower terminal."""
    return min(columns, width(sys.stdout) or columns)


_USUAL = 80
_HANGING = re.compile(r" *# +| *[^ ]+( [^ ]+)*  +(?=[^ ])| *")


def fitted(text: str, columns: int | None) -> str:
    """The text with lines broken between words where they would take more than so many columns;
    None: as it is. What goes on in a next line begins below the second column of a table, behind
    the mark of a comment, or a little further in than the line."""
    if columns is None:
        return text
    return "\n".join(part for line in text.split("\n") for part in _broken(line, columns))


def _broken(line: str, columns: int) -> list[str]:
    if len(line) <= columns:
        return [line]
    begun = _HANGING.match(line)[0]  # type: ignore[index]  # it matches nothing, too
    if begun.strip() == "#":
        hanging = begun
    elif begun.strip() and len(begun) <= columns // 2:
        hanging = " " * len(begun)
    else:
        hanging = " " * (len(line) - len(line.lstrip(" ")) + 2)
    return textwrap.wrap(
        line,
        columns,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def confirmed(question: str) -> bool | None:
    """Whether a person says yes to a question at the terminal; None if there is no terminal."""
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        return None
    with aside():
        sys.stderr.write(fitted(f"{harmless(question)} [y/N]", width(sys.stderr)) + " ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def show(text: str, stream: TextIO | None) -> None:
    """Print a text, harmless; characters that the stream's encoding lacks are shown by number, too.
    A stream that is missing or closed is ignored."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    shown = harmless(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        with aside():
            print(shown, file=stream, flush=True)
    except BrokenPipeError:  # as behind `| head`; the interpreter must not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
