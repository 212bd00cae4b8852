"""Is a config written out whole, with every meaning, and does it stay the same config?"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from ste_jax.commands.config import list_configs, show_config
from ste_jax.config import schema
from ste_jax.config.commented import WIDTH, commented, split_comments
from ste_jax.config.load import load_config, read_config, shipped_configs
from ste_jax.config.meanings import meaning
from ste_jax.config.schema import Config

GROUPS = [kind for _, kind in inspect.getmembers(schema, dataclasses.is_dataclass)]
SETS = """
model: pico
endpoints:
  big: {url: "http://host:8000/v1", model: "a: b"}
evaluate:
  sets:
    - {name: one, data: one.jsonl}
    - {name: two, data: "#two.jsonl", by: [kind]}
pool:
  require: {toxic: "False", "a.b": "#1"}
annotate:
  generator: {"1": big}
roles:
  judge:
    sampling: {stop: ["\\n\\n", "# "]}
    template_arguments: {enable_thinking: true, budget: 3}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", shipped_configs())
def test_a_config_written_out_is_the_same_config(name: str, tmp_path: Path) -> None:
    text = show_config(name)
    assert read_config(written(tmp_path, text)) == read_config(shipped_configs()[name])
    assert load_config(str(tmp_path / "config.yaml")) == load_config(name)
    comments = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert max(map(len, comments)) <= WIDTH + 1  # the heading stands as it was written


def test_a_run_has_its_own_config(tmp_path: Path) -> None:
    written(tmp_path, "model: pico\niterations: 7\n")
    assert "iterations: 7  # default: 3" in show_config(str(tmp_path)).splitlines()


def test_groups_by_name_and_odd_texts_survive(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, SETS))
    assert len(config.evaluate.sets) == 2
    text = commented(config, SETS)
    assert read_config(written(tmp_path, text)) == config


def test_every_key_stands_in_the_text() -> None:
    values = yaml.safe_load(commented(Config(model="pico")))

    def keys(kind: Any, values: dict[str, Any]) -> None:
        assert list(values) == [field.name for field in dataclasses.fields(kind)]
        for field in dataclasses.fields(kind):
            default = getattr(kind, field.name)
            if dataclasses.is_dataclass(default):
                keys(default, values[field.name])

    keys(Config(model="pico"), values)


@pytest.mark.parametrize("kind", GROUPS, ids=lambda kind: kind.__name__)
def test_every_knob_has_a_meaning(kind: type) -> None:
    for field in dataclasses.fields(kind):
        assert meaning(kind, field.name), f"{kind.__name__}.{field.name} says nothing"


def test_meanings_defaults_and_remarks_stand_beside_the_values() -> None:
    lines = [line.strip() for line in show_config("pico").splitlines()]
    assert "train: 600  # default: 1000" in lines
    assert "heldout: 60  # default: 200" in lines
    at = lines.index("validate_every: 1000  # default: 100")
    assert lines[at - 1].startswith("# Here: only after the last step")
    assert lines[0].startswith("# The embedded default")
    # What a key means is said once for all roles.
    assert sum(line.startswith("# 0 is greedy") for line in lines) == 1


def test_remarks_are_found_at_their_keys() -> None:
    top, remarks = split_comments("# a\n# b\nx: 1  # one\n\n# of y\ny:\n  # of z\n  z: '#'\nw: 2\n")
    assert top == ["# a", "# b"]
    assert remarks == {"x": "one", "y": "of y", "y.z": "of z"}


def test_shipped_configs_are_listed() -> None:
    lines = list_configs().splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_configs())
    assert all(len(line.split()) > 3 for line in lines)
