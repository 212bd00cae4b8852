"""How is somebody's text shown so that it can do nothing but be read?

A model's words may hold what moves a terminal's cursor, clears its screen, or turns the order of
letters round, so that a reader sees another text. Such characters are shown by their numbers. Files
keep a text as it is.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

# All controls but tab and line feed; the marks, embeddings, overrides and isolates of writing
# direction; line and paragraph separators; what is no character by itself.
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff\ufeff]"
)


def harmless(text: str) -> str:
    """The text with every character that acts shown as `\\uXXXX`, as JSON writes it."""
    return _ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def say(text: str) -> None:
    """Print a text on standard output, as `show` does."""
    show(text, sys.stdout)


def show(text: str, stream: TextIO | None) -> None:
    """Print a text, harmless; what the stream's encoding lacks is shown by number, too. A stream
    that is not there, or that nobody reads any more, takes it without a word."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    shown = harmless(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(shown, file=stream, flush=True)
    except BrokenPipeError:  # as behind `| head`; nor shall the interpreter try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
