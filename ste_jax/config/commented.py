"""How is a config written out with every key, its meaning and its default?

The text is YAML again, and means the same config: keys that the config leaves out stand at their
defaults, and a value that differs from its default has that beside it. A meaning is written where a
key of its kind first stands, and with it what the config's own file remarks at the key.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ste_jax.config.from_plain import to_dict
from ste_jax.config.meanings import group_in, meaning
from ste_jax.config.schema import Config
from ste_jax.system.terminal import fitted

WIDTH = 100
_STEP = "  "
_KEY = re.compile(r"(?P<indent> *)(?P<name>\w+):(?:.*? # (?P<beside>.*)|.*)")


def commented(config: Config, source: str = "", width: int = WIDTH) -> str:
    """The text of a config that was read from the text `source`, with comments that take at most
    `width` columns."""
    heading, remarks = split_comments(source)
    lines = [*(fitted(line, width) for line in heading), ""] if heading else []
    lines += _Writer(remarks, width).group(config, Config(model=""), "", "")
    return "\n".join(lines) + "\n"


def split_comments(source: str) -> tuple[list[str], dict[str, str]]:
    """The lines of comment at the top of a config's text, and the remarks at its keys, by their
    dotted names."""
    lines = source.splitlines()
    top = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
    remarks: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    waiting: list[str] = []
    for line in lines[top:]:
        bare, key = line.strip(), _KEY.fullmatch(line)
        if bare.startswith("#"):
            waiting.append(bare.lstrip("# "))
            continue
        if key is not None:
            indent = len(key["indent"])
            parents = [*(each for each in parents if each[0] < indent), (indent, key["name"])]
            if found := " ".join([*waiting, *([key["beside"]] if key["beside"] else [])]):
                remarks[".".join(name for _, name in parents)] = found
        waiting = []
    return lines[:top], remarks


def comment(text: str, indent: str = "", hanging: str = "", width: int = WIDTH) -> list[str]:
    """A text as lines of comment."""
    start = f"{indent}# "
    return textwrap.wrap(
        text,
        width,
        initial_indent=start,
        subsequent_indent=start + hanging,
        break_on_hyphens=False,
        break_long_words=False,
    )


def inline(value: Any) -> str:
    """A plain value as it stands behind a key in YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=2**31, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


class _Writer:
    """Writes groups of knobs; knows what was said already."""

    def __init__(self, remarks: Mapping[str, str], width: int) -> None:
        self._remarks, self._width = remarks, width
        self._said: set[tuple[type, str]] = set()

    def group(self, values: Any, usual: Any, key: str, indent: str) -> Iterator[str]:
        """The lines of the group `key`; `usual` is the group at its defaults, None if it has
        none."""
        for field in dataclasses.fields(values):
            if not key and field.name != "name":
                yield ""
            yield from self._field(values, field, _default(field, usual), key, indent)

    def _field(
        self, values: Any, field: dataclasses.Field[Any], default: Any, group: str, indent: str
    ) -> Iterator[str]:
        kind, name, value = type(values), field.name, getattr(values, field.name)
        inner = group_in(typing.get_type_hints(kind, include_extras=True)[name])
        if (kind, name) not in self._said:
            self._said.add((kind, name))
            yield from comment(meaning(kind, name), indent, width=self._width)
            if inner is not None and not value:
                yield from _keys_of(inner, indent, self._width)
        key = f"{group}.{name}" if group else name
        if key in self._remarks:
            yield from comment(f"Here: {self._remarks[key]}", indent, width=self._width)
        if dataclasses.is_dataclass(value):
            yield f"{indent}{name}:"
            yield from self.group(value, default, key, indent + _STEP)
        elif inner is not None and value:
            yield f"{indent}{name}:"
            yield from self._several(value, key, indent)
        else:
            yield from _value(name, _plain(value), _plain(default), indent, self._width)

    def _several(self, value: Any, key: str, indent: str) -> Iterator[str]:
        """The lines of groups by name, or in a list."""
        inside = indent + 2 * _STEP
        if isinstance(value, Mapping):
            for name, group in value.items():
                yield f"{indent}{_STEP}{inline(name)}:"
                yield from self.group(group, None, f"{key}.{name}", inside)
            return
        for number, group in enumerate(value):
            begun = False
            for line in self.group(group, None, f"{key}[{number}]", inside):
                if begun or line.lstrip().startswith("#"):
                    yield line
                else:
                    begun = True
                    yield f"{indent}{_STEP}- {line.lstrip()}"


def _value(name: str, value: Any, default: Any, indent: str, width: int) -> Iterator[str]:
    line = f"{indent}{name}: {inline(value)}"
    if default is dataclasses.MISSING or value == default:
        yield line
        return
    beside = f"{line}  # default: {inline(default)}"
    if len(beside) <= width:
        yield beside
    else:
        yield from comment(f"Default: {inline(default)}", indent, width=width)
        yield line


def _keys_of(kind: type, indent: str, width: int) -> Iterator[str]:
    """As comments, the keys that each of several groups may have, where there are none yet."""
    for field in dataclasses.fields(kind):
        default = _plain(_default(field, None))
        usual = "needed" if default is dataclasses.MISSING else f"default: {inline(default)}"
        text = f"{_STEP}{field.name}: {meaning(kind, field.name)} ({usual})"
        yield from comment(text, indent, hanging=2 * _STEP, width=width)


def _default(field: dataclasses.Field[Any], usual: Any) -> Any:
    """A field's default; `MISSING` if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory() if usual is None else getattr(usual, field.name)
    if field.default is dataclasses.MISSING or usual is None:
        return field.default
    return getattr(usual, field.name)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return to_dict(value) if dataclasses.is_dataclass(value) else value
