"""How are the fields of a model's config read, so that none is passed over?

A field that would change the computation in a way that is not known here is refused by name: a
model that loads is the model that was meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ste_jax.system.errors import RequestError


class Fields:
    """The fields of a config. Every one must be read, or be known to have no effect."""

    def __init__(
        self, values: Mapping[str, Any], where: str, known: Iterable[str] = (), prefix: str = ""
    ) -> None:
        """`known` are the fields without effect. Messages begin with `where`, and write `prefix`
        before a field's name."""
        self._values = values
        self._read = set(known)
        self._start = f"{where}: {prefix}"
        self.where = where

    def take(self, key: str, default: Any = None) -> Any:
        """The field's value; `default` where it is missing or null."""
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The field's value. Raises `RequestError` where there is none."""
        value = self.take(key)
        if value is None:
            raise RequestError(f"{self._start}{key} is missing")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """The field's value, a positive integer. Raises `RequestError` for another."""
        value = self.need(key) if default is None else self.take(key, default)
        return _whole(value, f"{self._start}{key}")

    def number(self, key: str, default: float | None = None) -> float:
        """The field's value, a positive number. Raises `RequestError` for another."""
        value = self.need(key) if default is None else self.take(key, default)
        return positive(value, f"{self._start}{key}")

    def flag(self, key: str, default: bool = False) -> bool:
        """The field's value, true or false. Raises `RequestError` for another."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false is needed")
        return value

    def group(self, key: str) -> dict[str, Any]:
        """The field's value, an object; empty where there is none."""
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise self.refuse(key, "an object is expected")
        return dict(value)

    def words(self, key: str) -> list[str] | None:
        """The field's value, a list of texts; None where there is none."""
        value = self.take(key)
        if value is None or (isinstance(value, list) and all(isinstance(x, str) for x in value)):
            return value
        raise self.refuse(key, "a list of texts is needed")

    def nullable(self, key: str, default: Any) -> Any:
        """The field's value, which may be null; `default` only where it is missing."""
        self._read.add(key)
        return self._values.get(key, default)

    def optional(self, key: str, default: float | None = None) -> float | None:
        """The field's value, a positive number; None where it is null."""
        value = self.nullable(key, default)
        return None if value is None else positive(value, f"{self._start}{key}")

    def window(self, default: int | None, *, needed: bool = False) -> int | None:
        """The window of local layers; null is none. Raises `RequestError` where one is needed."""
        if self.nullable("sliding_window", default) is not None:
            return self.size("sliding_window", default)
        if needed:
            raise self.refuse("sliding_window", "and this family's local layers need one")
        return None

    def refuse(self, key: str, why: str) -> RequestError:
        """The error that names the field."""
        return RequestError(f"{self._start}{key} is {self._values.get(key)!r}, {why}")

    def only(self, key: str, *allowed: Any) -> None:
        """Refuses the field where it is there and none of `allowed`."""
        if self.take(key, allowed[0]) not in allowed:
            supported = " or ".join(map(str, allowed))
            raise self.refuse(key, f"only {supported} is supported")

    def finish(self) -> None:
        """Refuses the fields that were not read. A field that is off (null, false, 0, empty) is
        let pass, since it asks for nothing unusual."""
        for key, value in self._values.items():
            if key not in self._read and value:
                raise self.refuse(key, "a field that is not known here and may change the result")


def positive(value: Any, name: str) -> float:
    """The value. Raises `RequestError`, which begins with `name`, where it is no number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e38:
        raise RequestError(f"{name} is {value!r:.100}, a number above 0 is needed")
    return float(value)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise RequestError(f"{name} is {value!r:.100}, a positive integer is needed")
    return value
