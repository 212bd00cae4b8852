"""How is a config read, and which groups of its knobs contradict each other?

A config is YAML in the form of `config.schema.Config`, plus `key.sub=value` overrides. A key that
does not exist, a value of the wrong type, a number out of its range or knobs that exclude each
other raise a `RequestError` that names the file, the key and what was expected.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from ste_jax.config import from_plain
from ste_jax.config.judging import check_task, with_task
from ste_jax.config.schema import Config
from ste_jax.system import notation
from ste_jax.system.errors import RequestError
from ste_jax.system.yaml_notation import from_yaml


def load_config(source: str, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """Read a YAML config and apply overrides, as `key.sub=value` words or by `key.sub`.

    `source` is a path, or the name of a shipped config (`smollm2-135m`).

    Raises:
      RequestError: no such file, not YAML, an unknown key, a wrong type, or knobs that contradict
        each other; the message names the file, the key and what was expected.
    """
    path = find_config(source)
    config = read_config(path, overrides)
    with from_plain.named(str(path)):
        config = with_task(config)
        check(config)
    return config


def read_config(
    path: Path | epath.Path, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """What stands in the file of a config: what follows from other knobs is not filled in, and
    groups are not held against each other.

    Raises:
      RequestError: as `load_config`.
    """
    try:
        values = from_yaml(notation.as_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise RequestError(f"config {path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise RequestError(f"config {path} must be a mapping of keys to values")
    changes = overrides.items() if isinstance(overrides, Mapping) else map(_read, overrides)
    for key, value in changes:
        _apply(values, key, value)
    config: Config = from_plain.build(Config, values, where=str(path))
    return config


def is_shipped(source: str) -> bool:
    """Whether a word is the name of a shipped config, and of no file here."""
    return not Path(source).is_file() and source in shipped_configs()


def find_config(source: str) -> epath.Path:
    """The file of a config: `source` itself, or the shipped one of that name.

    Raises:
      RequestError: there is neither.
    """
    path = epath.Path(source)  # a run's own config may lie in an object store
    if path.is_file():
        return path
    there = shipped_configs()
    if source in there:
        return epath.Path(there[source])
    near = difflib.get_close_matches(source, there, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "; `ste config --list` lists those"
    raise RequestError(
        f"config {source} is neither a file, nor a run's directory, nor the name of a shipped "
        f"config{hint}"
    )


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by name; in a checkout they lie beside it."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    folder = installed if installed.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _read(override: str) -> tuple[str, Any]:
    """The key and the value of a `key.sub=value` word."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError(f"override {override!r} is not of the form key=value")
    try:
        return key, from_yaml(text)
    except ValueError as error:
        raise RequestError(f"the value of override {override!r} is not YAML: {error}") from error


def _apply(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RequestError(f"override of {key}: {parent} is a value, not a group of keys")
    values[last] = value


def check(config: Config) -> None:
    """Refuse groups of knobs that contradict each other; each group has checked itself.

    Raises:
      RequestError: names the keys and says which to change.
    """
    _check_samples(config)
    _check_generators(config)
    if config.curate.min_agreement > 0 and config.annotate.policy != "all":
        raise RequestError(
            "curate.min_agreement needs every sample; set annotate.policy=all or min_agreement=0"
        )
    check_task(config)


def _check_samples(config: Config) -> None:
    fixed = config.roles.judge.sampling.temperature == 0
    why = "roles.judge.sampling.temperature=0" if fixed else "evaluate.greedy=true"
    for key, value, same in (
        ("annotate.samples", config.annotate.samples, fixed),
        ("evaluate.votes", config.evaluate.votes, fixed or config.evaluate.greedy),
    ):
        if same and value > 1:
            raise RequestError(
                f"{key}={value} at {why} would be one and the same text {value} times; "
                f"change that or set {key}=1"
            )


def _check_generators(config: Config) -> None:
    named = {"select.generator": config.select.generator, "pair.generator": config.pair.generator}
    for iteration, name in config.annotate.generator.items():
        if (
            not re.fullmatch("[1-9][0-9]*", iteration)
            or not 1 <= int(iteration) <= config.iterations
        ):
            raise RequestError(
                f"annotate.generator names the iteration {iteration!r}, not one from 1 to "
                f"iterations={config.iterations}"
            )
        named[f"annotate.generator.{iteration}"] = name
    for key, name in named.items():
        if name and name not in config.endpoints:
            known = ", ".join(config.endpoints) or "none"
            raise RequestError(f"{key} is {name!r}, which is none of endpoints ({known})")
