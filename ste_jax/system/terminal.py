"""How is a text from outside shown on a terminal so that it can only be read?

A model's words may hold characters that move a terminal's cursor, clear its screen, or reverse the
order of letters, so that a reader sees another text. Such characters are shown by their numbers.
Files keep a text as it is.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TextIO

# This matches all controls but tab and line feed; the marks, embeddings, overrides and isolates of
# writing direction; line and paragraph separators; and halves of surrogate pairs.
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff\ufeff]"
)


def harmless(text: str) -> str:
    """The text with every character that could do something written as `\\uXXXX`, as in JSON."""
    return _ACTIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def say(text: str) -> None:
    """Print a text on standard output, harmless (see `show`)."""
    show(text, sys.stdout)


def show(text: str, stream: TextIO | None) -> None:
    """Print a text, harmless; characters that the stream's encoding lacks are shown by number, too.
    A stream that is missing or closed is ignored."""
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    shown = harmless(text).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(shown, file=stream, flush=True)
    except BrokenPipeError:  # as behind `| head`; the interpreter must not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
