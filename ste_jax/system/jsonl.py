"""How is a user's file of JSON lines read, each line by itself?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from ste_jax.system import notation


class Line(NamedTuple):
    """A line that is not blank: its value, or the fault by which it has none."""

    number: int
    """The first line of a file is 1; blank lines count."""
    value: Any
    fault: str = ""
    """What is wrong with a line that is not JSON in UTF-8; empty if nothing is."""


def read_jsonl(path: epath.PathLike) -> Iterator[Line]:
    """The lines of a file that are not blank, one in memory at a time.

    Raises:
      OSError: the file cannot be read.
    """
    with epath.Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield Line(number, notation.from_json(line))
            except ValueError as error:
                yield Line(number, None, str(error))
