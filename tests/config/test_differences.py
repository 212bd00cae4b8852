"""Which knobs are others than those of a run?"""

from __future__ import annotations

import pytest

from ste_jax.config.differences import Difference, differences
from ste_jax.config.from_plain import to_dict
from ste_jax.config.load import load_config

PICO = to_dict(load_config("pico"))


@pytest.mark.parametrize("name", ["pico", "smollm2-135m"])
def test_a_config_does_not_differ_from_itself(name: str) -> None:
    config = load_config(name)
    assert differences(to_dict(config), config) == []


def test_each_knob_that_differs_is_named_with_both_values() -> None:
    now = load_config("pico", ["annotate.samples=3", "annotate.waves=[3]", "finetune.epochs=1"])
    assert differences(PICO, now) == [
        Difference("annotate.samples", 15, 3),
        Difference("annotate.waves", [1, 2, 4, 8], [3]),
        Difference("finetune.epochs", 2.0, 1.0),
    ]


def test_of_a_group_by_names_what_is_there_on_one_side_alone_is_named() -> None:
    endpoints = "endpoints={big: {url: 'http://localhost:1/v1', model: m}}"
    big = load_config("pico", [endpoints, "annotate.generator={1: big}"])
    found = {each.name: each for each in differences(PICO, big)}
    assert found["annotate.generator.1"] == Difference("annotate.generator.1", None, "big")
    assert found["endpoints.big.model"].was is None
    back = {each.name: each for each in differences(to_dict(big), load_config("pico"))}
    assert back["annotate.generator.1"] == Difference("annotate.generator.1", "big", None)


def test_a_knob_that_came_later_had_its_default() -> None:
    earlier = {**PICO, "annotate": {k: v for k, v in PICO["annotate"].items() if k != "orders"}}
    assert differences(earlier, load_config("pico")) == []
    one = differences(earlier, load_config("pico", ["annotate.orders=one"]))
    assert one == [Difference("annotate.orders", "both", "one")]


def test_a_config_that_cannot_be_read_any_more_is_compared_where_both_have_a_knob() -> None:
    strange = {"seed": 3, "no_such_knob": 1, "annotate": {"samples": "many"}}
    assert differences(strange, load_config("pico")) == [
        Difference("seed", 3, 0),
        Difference("annotate.samples", "many", 15),
    ]
