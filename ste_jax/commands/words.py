"""Which words may a command line have?

Before argparse reads them, a text is tied to its option; as it reads them, a number must lie in its
range; after that, a word that says nothing is refused.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ste_jax.system import notation, ranges
from ste_jax.system.errors import RequestError
from ste_jax.system.terminal import show

_TEXTS = ("--instruction", "--a", "--b", "--stop")
"""Options whose value is any text: the next word, whatever it begins with."""
_PLACES = ("--dir", "--template", "--prompts", "--out", "--data", "--coordinator")
"""Options whose value may begin with a dash, if it is not the name of an option."""
_MARK = "text:"


def text(word: str) -> str:
    """A type for argparse: a text as `with_values` hands it on."""
    return word.removeprefix(_MARK)


def read_texts(given: Mapping[str, str]) -> dict[str, str]:
    """The texts that the options of a command stand for, by the name of the option.

    `@FILE` is the text of a file, `-` that of standard input, which one option may take. A text
    that begins with an `@` is given with two. Of what is read, line breaks at the end are dropped,
    as a shell's `$(cat FILE)` drops them.

    Raises:
      RequestError: a file cannot be read or is not UTF-8, or two options take standard input.
    """
    piped = [name for name, word in given.items() if word == "-"]
    if len(piped) > 1:
        raise RequestError(f"{' and '.join(piped)} are both -: standard input holds one text")
    return {name: _read_text(name, word) for name, word in given.items()}


def _read_text(name: str, word: str) -> str:
    if word.startswith("@@"):
        return word[1:]
    if word != "-" and not word.startswith("@"):
        return word
    where = "standard input" if word == "-" else word[1:]
    try:
        data = _read_input(name) if word == "-" else Path(where).expanduser().read_bytes()
        return notation.as_text(data).rstrip("\r\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        hint = "" if word == "-" else f"; a text that begins with @ is given as @{word}"
        raise RequestError(
            f"{name}: {where or 'an empty name'} cannot be read: {why}{hint}"
        ) from error


def _read_input(name: str) -> bytes:
    if sys.stdin is None:  # as with `<&-`
        raise ValueError("it is closed")
    if sys.stdin.isatty():
        show(f"{name}: type the text, and end it with Ctrl-D", sys.stderr)
    return sys.stdin.buffer.read()


def check_words(arguments: argparse.Namespace) -> None:
    """Refuse words that say nothing, such as a shell's variable that is not set.

    Raises:
      RequestError: names the word's place.
    """
    for name, value in vars(arguments).items():
        flag = "--" + name.replace("_", "-")
        words = value if isinstance(value, list) else [value]
        free = flag in (*_TEXTS, "--coordinator")  # any text, or checked elsewhere
        if not free and any(isinstance(word, str) and not word.strip() for word in words):
            raise RequestError(f"an empty word is given for {name}: leave it out or fill it in")


def with_values(words: Sequence[str]) -> list[str]:
    """The words with each such option and its value in one: argparse takes `-1/4` for an option,
    and drops `--` wherever it stands alone."""
    found: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word == "--":
            return [*found, word, *waiting]
        name, equals, value = word.partition("=")
        # in argparse, the beginning of an option's name can stand for it
        if name in _TEXTS or (len(name) > 3 and any(each.startswith(name) for each in _TEXTS)):
            given = value if equals else next(waiting, None)
            found.append(name if given is None else f"{name}={_MARK}{given}")
        elif word in _PLACES and (place := next(waiting, None)) is not None:
            dashed = place.startswith("-") and not re.match("--[a-z]|-h$", place)
            found += [f"{word}={place}"] if dashed else [word, place]
        else:
            found.append(word)
    return found


def _number(kind: Any) -> Callable[[str], Any]:
    """A type for argparse: a number of one of the types of knobs, with its range."""
    plain, range_ = get_args(kind)

    def parse(text: str) -> Any:
        try:
            value = plain(text)
        except ValueError:
            value = None
        if value is None or not range_.holds(value):
            whole = "a whole number" if plain is int else "a number"
            raise argparse.ArgumentTypeError(f"{text} is not {whole} {range_}")
        return value

    return parse


positive, natural, seed = _number(ranges.Count), _number(ranges.OrNone), _number(ranges.Seed)
temperature, fraction = _number(ranges.Temperature), _number(ranges.Share)
share = _number(ranges.Probability)
