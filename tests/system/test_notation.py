"""JSON and YAML of somebody else's: nothing silently becomes something else."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.commands.batch import read_prompts
from ste_jax.config.load import load_config
from ste_jax.prompts.render import PLACES, load_template
from ste_jax.system import notation
from ste_jax.system.errors import RequestError
from ste_jax.system.yaml_notation import from_yaml

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(value=VALUES)
def test_what_is_written_is_read(value):
    assert notation.from_json(json.dumps(value)) == value
    assert from_yaml(yaml.safe_dump(value, allow_unicode=True)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"),
        ("00", "00"),
        ("-017", "-017"),
        ("0o17", "0o17"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("190:20:30", "190:20:30"),
        ("2024-13-45", "2024-13-45"),
        ("2024-01-02", "2024-01-02"),
        ("0", 0),
        ("-12", -12),
        ("1_000", 1000),
        ("0x1F", 31),
        ("1.5", 1.5),
        ("01.5", 1.5),
        ("1.0e-5", 1e-5),
        (".inf", float("inf")),
        ("yes", True),
        ("{on: 1, 010: 2, 1: 3, ~: 4}", {"on": 1, "010": 2, "1": 3, "~": 4}),
        ("{a: &x {b: 1, c: 2}, d: {<<: *x, b: 3}}", {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}),
    ],
)
def test_yaml_is_read_as_it_is_written(text, value):
    assert from_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: the key 'c' stands twice"),
        ("{1: a, '1': b}", "the key '1' stands twice"),
        ("[" * 2000, "nested too deep"),
        ("a: [", "line 1"),
        ("a: \0", "not allowed"),
    ],
)
def test_what_yaml_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        from_yaml(text)


@pytest.mark.parametrize("depth", [101, 1000, 100_000])
def test_json_that_is_nested_too_deep(depth):
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        notation.from_json("[" * depth + "]" * depth)
    assert notation.from_json("[" * 100 + "]" * 100)
    assert notation.from_json("[[]" + ", []" * 1000 + "]")


def test_a_config_with_a_key_twice_or_an_octal_number(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\nmodel: pico\nmodel: other\n")
    with pytest.raises(RequestError, match=r"c\.yaml.*line 3: the key 'model' stands twice"):
        load_config(str(path))
    path.write_text("name: 010\nmodel: pico\nseed: 010\n")
    with pytest.raises(RequestError, match="seed must be a whole number, not '010'"):
        load_config(str(path))
    for override in ("seed=1:30", "seed=010"):
        with pytest.raises(RequestError, match="seed must be a whole number"):
            load_config("pico", [override])
    path.write_text("name: 010\nmodel: pico\n")
    assert load_config(str(path)).name == "010"
    path.write_bytes("name: x\n".encode("utf-16"))
    with pytest.raises(RequestError, match="it is UTF-16"):
        load_config(str(path))


def test_a_template_with_a_key_twice(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text('user: "{instruction}"\nuser: "Hi. {instruction}"\n')
    with pytest.raises(RequestError, match=r"t\.yaml.*the key 'user' stands twice"):
        load_template(str(path), PLACES["respond"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": ' + "[" * 1000 + "]" * 1000 + "}", "nested more than 100 deep"),
        ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' stands twice"),
        ('{"prompt": "a", "id": [1]}', "`id` must be"),
        ('{"prompt": "a", "id": NaN}', "`id` must be"),
    ],
)
def test_prompts_that_are_refused(tmp_path, line, told):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(RequestError, match=rf"p\.jsonl:2: .*{told}"):
        read_prompts(str(path))


def test_prompts_without_ids_are_numbered_and_a_mark_is_passed_over(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "id": null}\r\n{"prompt": "b", "id": null}\r\n')
    assert [id for id, _ in read_prompts(str(path))] == ["1", "2"]
    path.write_bytes('{"prompt": "a"}\n'.encode("utf-16"))
    with pytest.raises(RequestError, match="it is UTF-16"):
        read_prompts(str(path))
