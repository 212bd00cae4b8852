"""Which knobs of two configs differ?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ste_jax.config.from_plain import build, to_dict
from ste_jax.config.schema import Config
from ste_jax.system.errors import RequestError


class Difference(NamedTuple):
    """A knob by its dotted name, and its values; None where it is not there."""

    name: str
    was: Any
    now: Any


def differences(before: Mapping[str, Any], now: Config) -> list[Difference]:
    """The knobs that differ between a config that was read back, as plain values, and one of today.

    A knob that came after the earlier config was written has its default there. Where that config
    cannot be read any more, only the knobs that both have are compared.
    """
    here, partly = _flat(to_dict(now)), False
    try:
        there = _flat(to_dict(build(Config, before, "the run's config")))
    except RequestError:
        there, partly = _flat(before), True
    names = [name for name in here if name in there] if partly else [*here, *there]
    return [
        Difference(name, there.get(name), here.get(name))
        for name in dict.fromkeys(names)
        if there.get(name) != here.get(name)
    ]


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested groups as one mapping by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
