"""What does each key of a config mean?

A knob's meaning stands beneath its field in `config/schema`, as a text that Python does not keep.
It is read from the source here, so that it stands nowhere else.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ste_jax.system.ranges import Range

_NARROW = 5
"""Ranges up to here are said: of others the upper end is only there to catch slips."""


@functools.cache
def meanings(kind: type) -> Mapping[str, str]:
    """Name of a field -> the text beneath it, on one line; a field without one is left out."""
    (found,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(found, ast.ClassDef)
    texts = {}
    for field, after in zip(found.body, found.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            texts[field.target.id] = " ".join(str(after.value.value).split())
    return texts


def meaning(kind: type, name: str) -> str:
    """What a field of a group means: the text beneath it or, of a group without one, that of its
    class; and which values it takes, where these are few."""
    hint = typing.get_type_hints(kind, include_extras=True)[name]
    text = meanings(kind).get(name, "")
    if not text and dataclasses.is_dataclass(hint):
        text = " ".join(str(hint.__doc__).split())
    return " ".join(part for part in (text, _values(hint)) if part)


def group_in(hint: Any) -> type | None:
    """The group of knobs that a field of this type holds several of, by name or in a list."""
    arms = typing.get_args(hint)
    inner = arms[1] if typing.get_origin(hint) is Mapping else arms[0] if arms else None
    return inner if dataclasses.is_dataclass(inner) else None  # type: ignore[return-value]


def _values(hint: Any) -> str:
    origin, arms = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"One of {', '.join(map(str, arms))}."
    if origin is Annotated and isinstance(arms[1], Range) and arms[1].most <= _NARROW:
        return f"{str(arms[1]).capitalize()}."
    return ""
