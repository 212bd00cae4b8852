"""Every number of a config has its range, which is held before anything is opened or removed."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.config import from_plain, load
from ste_jax.config.schema import Config
from ste_jax.system.errors import RequestError
from ste_jax.system.ranges import Range

BASE: dict[str, Any] = {
    "model": "m",
    "finetune": {"stages": ["sft", "dpo"]},
    "annotate": {"policy": "all"},
    "endpoints": {"big": {"url": "http://host/v1", "model": "m"}},
    "evaluate": {"sets": [{"name": "mine", "data": "mine.jsonl"}]},
}


def numbers(kind: Any, key: str = "") -> Iterator[tuple[str, Any, Range | None]]:
    """(dotted key, int or float, range) of every number below a type; lists end in `[]`."""
    origin, arms = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        for name, hint in hints.items():
            yield from numbers(hint, f"{key}.{name}" if key else name)
    elif origin is typing.Annotated:
        yield key, arms[0], next((each for each in arms[1:] if isinstance(each, Range)), None)
    elif origin is tuple:
        yield from numbers(arms[0], f"{key}[]")
    elif origin is Mapping:
        yield from numbers(arms[1], f"{key}.big")
    elif kind in (int, float):
        yield key, kind, None
    else:
        for arm in arms if origin is not typing.Literal else ():
            yield from numbers(arm, key)


NUMBERS = list(numbers(Config))
RANGES = {key: (kind, range_) for key, kind, range_ in NUMBERS if range_ is not None}


def words_of(key: str, value: str) -> str:
    """The override that sets a number; of a list, its one element."""
    if key.endswith("[]"):
        return f"{key[:-2]}=[{value}]"
    return f"{key}={value}"


def refused(tmp_path: Any, key: str, value: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE))
    with pytest.raises(RequestError) as caught:
        load.load_config(str(path), [words_of(key, value)])
    said = str(caught.value)
    assert key.removesuffix("[]") in said and "run.yaml" in said, said


def test_the_numbers_are_found() -> None:
    kinds = {group.split(".")[0] for group in RANGES}
    assert {"pool", "roles", "endpoints", "finetune", "decoding", "seed"} <= kinds
    assert {"annotate.waves[]", "finetune.dpo.beta", "finetune.mesh.fsdp"} <= RANGES.keys()
    assert len(NUMBERS) > 90


def test_every_number_of_a_config_has_a_range() -> None:
    """A knob that is added as a plain `int` or `float` is found here: give it a type of
    `ste_jax/system/ranges.py`."""
    assert [key for key, _, range_ in NUMBERS if range_ is None] == []


def test_every_range_is_bounded_and_holds_the_default() -> None:
    for key, (_, range_) in RANGES.items():
        assert math.isfinite(range_.least) and math.isfinite(range_.most), key
    read = from_plain.build(Config, BASE, "base")
    assert from_plain.build(Config, from_plain.to_dict(read), "again") == read


@pytest.mark.parametrize(
    "value",
    [
        ".nan",
        ".inf",
        "-.inf",
        "nan",
        "inf",
        "-1",
        "1e30",
        "1.0e+30",
        "1" + 30 * "0",
        "1" + 400 * "0",
    ],
)
def test_what_is_no_number_of_a_knob_is_refused(tmp_path: Any, value: str) -> None:
    for key, (_, range_) in RANGES.items():
        if value != "-1" or not range_.holds(-1):
            refused(tmp_path, key, value)


def test_minus_one_is_a_size_of_a_mesh_and_of_nothing_else() -> None:
    kept = {key for key, (_, range_) in RANGES.items() if range_.holds(-1)}
    assert kept == {
        f"{group}.mesh.{axis}"
        for group in ("decoding", "finetune")
        for axis in ("data", "fsdp", "expert", "tensor")
    }


@settings(max_examples=300, deadline=None, derandomize=True)
@given(key=st.sampled_from(sorted(RANGES)), value=st.floats() | st.integers())
def test_a_number_is_read_where_its_range_holds_it_and_nowhere_else(key: str, value: float) -> None:
    kind, range_ = RANGES[key]
    annotated = typing.Annotated[kind, range_]
    fits = type(value) is kind or (kind is float and isinstance(value, int))
    if fits and range_.holds(value):
        assert from_plain.build(annotated, value, "here", key) == value
    else:
        with pytest.raises(RequestError, match=r"here: .*must be"):
            from_plain.build(annotated, value, "here", key)


def test_a_value_in_a_file_is_refused_as_one_given_by_hand(tmp_path: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nfinetune: {epochs: .nan}\n")
    with pytest.raises(RequestError, match=r"run\.yaml: finetune\.epochs=nan is out of its range"):
        load.load_config(str(path))
