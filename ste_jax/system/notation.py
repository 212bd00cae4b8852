"""How is a user's JSON read, so that no value silently becomes another?

A key that is there twice is refused, and so is what is not UTF-8. YAML: `yaml_notation.py`."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

DEEPEST = 100
"""How deep lists and objects may be nested; no row of a pool or a benchmark goes so deep."""
_TOO_DEEP = f"lists and objects are nested more than {DEEPEST} deep"
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def from_json(data: str | bytes) -> Any:
    """The value of a JSON text; bytes are UTF-8, with or without a byte order mark.

    Raises:
      ValueError: not JSON, not UTF-8, a key stands twice, or nested too deep; says which.
    """
    text = as_text(data) if isinstance(data, bytes) else data
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    check_depth(value, text.count("[") + text.count("{"))
    return value


def check_depth(value: Any, openings: int = DEEPEST + 1) -> None:
    """Refuse a value that is nested too deep. `openings` is a bound on its lists and objects.

    Raises:
      ValueError: it is nested more than `DEEPEST` deep.
    """
    level, depth = [value], 0
    while openings > DEEPEST:
        level = [each for each in level if isinstance(each, (dict, list))]
        if not level:
            return
        if depth == DEEPEST:
            raise ValueError(_TOO_DEEP)
        depth += 1
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = list(itertools.chain.from_iterable(inner))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {first_twice([name for name, _ in pairs])!r} stands twice")
    return found


def first_twice(names: Sequence[str]) -> str:
    """The first of the names that is there more than once; empty if none is."""
    return next((name for name, count in Counter(names).items() if name and count > 1), "")


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a surrogate pair: JSON can escape one, but UTF-8 has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def as_text(data: bytes) -> str:
    """Bytes of UTF-8 as text, without a byte order mark.

    Raises:
      ValueError: they are something else; names UTF-16 and UTF-32.
    """
    check_encoding(data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None


def check_encoding(start: bytes) -> None:
    """Refuse the beginning of a text that is not UTF-8 but of two or four bytes a character.

    Raises:
      ValueError: it is in UTF-16 or UTF-32; says which.
    """
    name = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), "")
    even, odd = start[:4:2], start[1:4:2]
    if len(start) >= 4 and ((all(even) and not any(odd)) or (all(odd) and not any(even))):
        name = name or "UTF-16"  # Latin letters, each with a byte of 0
    if name:
        raise ValueError(f"it is {name}, not UTF-8; convert it (iconv -f {name} -t UTF-8)")
