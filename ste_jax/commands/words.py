"""Which words may a command line have?

Before argparse reads them, a text is tied to its option; as it reads them, a number must lie in its
range; after that, a word that says nothing is refused.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, get_args

from ste_jax.system import ranges
from ste_jax.system.errors import RequestError

_TEXTS = ("--instruction", "--a", "--b", "--stop")
"""Options whose value is any text: the next word, whatever it begins with."""
_PLACES = ("--dir", "--template", "--prompts", "--out", "--data", "--coordinator")
"""Options whose value may begin with a dash, if it is not the name of an option."""
_MARK = "text:"


def text(word: str) -> str:
    """A type for argparse: a text as `with_values` hands it on."""
    return word.removeprefix(_MARK)


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
