"""How do plain YAML values become a dataclass, and what is wrong with the ones that do not?

Values are read strictly: a key that does not exist, a value of the wrong type, a number out of its
range, or a group of knobs that refuses itself is a `RequestError` that names the file, the dotted
key and what was expected."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ste_jax.system import ranges
from ste_jax.system.errors import RequestError

FORMERLY = "formerly"
"""In a field's metadata: the key by which earlier versions called the field. It is still read."""


_ELSEWHERE = {
    "lr": "learning_rate",
    "batch_size": "batch_rows",
    "gradient_accumulation_steps": "accumulate",
    "max_seq_length": "sequence_length",
    "max_length": "sequence_length",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
}
"""What other trainers call a knob -> its name here."""


def build(kind: Any, values: Any, where: str, key: str = "") -> Any:
    """Turn plain YAML values into `kind` (a knob dataclass or a field's type), strictly.

    Raises:
      RequestError: an unknown key, a wrong type, a number out of its range, or a group whose
        `check` refuses it; names `where` and the dotted key.
    """
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, values, where, key)
    if kind is Any:
        return values
    origin, arms = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _in_range(build(arms[0], values, where, key), arms[1], where, key)
    wrong = RequestError(f"{where}: {key} must be {_describe(kind)}, not {values!r}")
    if origin is Literal:
        if values not in arms:
            raise wrong
        return values
    if origin is tuple:
        if isinstance(values, str) and arms[0] is str:
            values = [values]
        if not isinstance(values, (list, tuple)):
            raise wrong
        return tuple(build(arms[0], value, where, f"{key}[{i}]") for i, value in enumerate(values))
    if origin in (Mapping, dict):
        if not isinstance(values, Mapping):
            raise wrong
        return {
            str(name): build(arms[1], value, where, f"{key}.{name}")
            for name, value in values.items()
        }
    if kind is float and isinstance(values, (int, str)) and not isinstance(values, bool):
        try:  # YAML 1.1 reads 1e-5 as text
            return float(values)
        except (ValueError, OverflowError):
            raise wrong from None
    if type(values) is not kind:
        raise wrong
    return values


def _in_range(value: float, range_: ranges.Range, where: str, key: str) -> float:
    ranges.check(value, range_, f"{where}: {key}")
    return value


def _build_dataclass(kind: Any, values: Any, where: str, key: str) -> Any:
    if not isinstance(values, Mapping):
        raise RequestError(
            f"{where}: {key or 'the config'} must be a group of keys, not {values!r}"
        )
    hints = typing.get_type_hints(kind, include_extras=True)
    given = {}
    defaults = {field.name: field for field in dataclasses.fields(kind)}
    today = {
        field.metadata[FORMERLY]: name
        for name, field in defaults.items()
        if FORMERLY in field.metadata and name not in values
    }
    for asked, value in values.items():
        name = today.get(asked, asked)
        dotted = f"{key}.{name}" if key else str(name)
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            near = [ours] if (ours := _ELSEWHERE.get(str(name))) in hints else near
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(hints)}"
            raise RequestError(f"{where}: there is no key {dotted}{hint}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            value = _over_default(defaults[name], value)
        given[name] = build(hints[name], value, where, dotted)
    missing = [
        field.name
        for field in defaults.values()
        if field.name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        dotted = f"{key}.{missing[0]}" if key else missing[0]
        raise RequestError(f"{where}: the key {dotted} is missing and has no default")
    group = kind(**given)
    if hasattr(group, "check"):
        with named(where):
            group.check(key)
    return group


def check(knobs: Any, key: str) -> None:
    """Check knobs that were made in Python, as if they had been read under `key`.

    Raises:
      RequestError: as `build`.
    """
    build(type(knobs), to_dict(knobs), type(knobs).__name__, key)


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Puts `where` before the text of each `RequestError` that is raised in the `with` block."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


def _over_default(field_: dataclasses.Field[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, completed by the group's own default, which may differ from its type's."""
    if field_.default_factory is not dataclasses.MISSING:
        default = field_.default_factory()
    elif field_.default is not dataclasses.MISSING:
        default = field_.default
    else:
        return dict(values)
    return _merge(to_dict(default), values)


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in values.items():
        inner = merged.get(name)
        nested = isinstance(inner, dict) and isinstance(value, Mapping)
        merged[name] = _merge(typing.cast(dict[str, Any], inner), value) if nested else value
    return merged


def _describe(kind: Any) -> str:
    origin, arms = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _describe(arms[0])
    if origin is Literal:
        return "one of " + ", ".join(str(arm) for arm in arms)
    if origin is tuple:
        return f"a list of {_describe(arms[0])}"
    if origin in (Mapping, dict):
        return "a group of keys"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind, str(kind))


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a knob dataclass, as they would stand in YAML."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
