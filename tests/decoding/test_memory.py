"""Where memory does not suffice, is it said what fills it and which knob makes room?"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import pytest

from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding.engine import Engine
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.decoding.memory import bytes_per_device, footprint, room_made
from ste_jax.decoding.programs import Programs
from ste_jax.decoding.shapes import Shape, choose_shape
from ste_jax.generation import ScoreRequest
from ste_jax.models.config import LayerKind
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system.errors import WorkError
from tests.decoding import small
from tests.decoding.small import collect, prompt, request

ABSURD = 2**29
"""The most tokens that a knob takes, about: they have no room on a machine that runs tests."""


def decode(engine: Engine) -> None:
    engine.submit(request("x"), prompt(0, 9))
    collect(engine.completions())


@pytest.mark.parametrize("weights", ["dtype", "int8"])
def test_the_sizes_are_those_of_the_arrays(weights: Any) -> None:
    config = small.small_model().config
    knobs = dataclasses.replace(
        small.KNOBS, prompt_buckets=(16, 32), dtype="bfloat16", weights=weights
    )
    shape = Shape(16, 24, groups=2, rows=3)
    programs = Programs(
        small.small_model(),
        small.one_device(),
        dtype="bfloat16",
        chunk=8,
        steps=4,
        as_list=True,
        int8=weights == "int8",
    )

    def size(arrays: Any) -> int:
        return sum(one.nbytes for one in jax.tree.leaves(arrays))

    found = footprint(config, knobs, shape)
    assert found.weights == size(programs._weights)
    assert found.prefix == size(programs.prefix(2, 16))
    assert found.past == size(programs.pasts(2, 3, 24))
    assert found.buffer == size(programs.buffer(32))
    assert found.store == found.buffer * knobs.cache_tokens // 32
    assert found.total == sum(dataclasses.astuple(found))


def test_a_device_keeps_what_its_mesh_divides_and_all_of_the_rest() -> None:
    config, knobs = small.small_model().config, small.KNOBS
    largest = choose_shape(knobs, knobs.prompt_buckets[-1], knobs.new_buckets[-1])
    whole = footprint(config, knobs, largest)

    def on(devices: int, **mesh: int) -> float:
        placed = make_mesh(MeshKnobs(**{"fsdp": 1, **mesh}), jax.devices()[:devices])
        return bytes_per_device(config, knobs, placed)

    assert on(1) == whole.total
    assert on(2, data=2) == whole.total  # each has all of it
    caches = whole.total - whole.weights
    assert caches + whole.weights / 2 <= on(2, fsdp=2) < whole.total
    assert on(2, tensor=2) < on(2, fsdp=2)  # caches have kv heads


def test_a_window_makes_caches_small() -> None:
    config = small.small_model().config
    kinds = tuple(dataclasses.replace(kind, window=4) for kind in config.kinds)
    assert all(isinstance(kind, LayerKind) for kind in kinds)
    shape = Shape(32, 24, groups=2, rows=3)
    whole = footprint(config, small.KNOBS, shape)
    seen = footprint(dataclasses.replace(config, kinds=kinds), small.KNOBS, shape)
    assert (seen.prefix, seen.past) == (whole.prefix // 8, whole.past // 6)
    assert seen.buffer == whole.buffer


@pytest.mark.parametrize(
    ("changes", "shape", "named"),
    [
        # Many rows of long answers: what they have written is nearly all.
        (
            {"cache_tokens": 8},
            Shape(32, 4096, groups=64, rows=8),
            "dtype mesh groups group_size new_buckets prompt_buckets weights cache_tokens",
        ),
        # Long prompts in bfloat16; one row each.
        (
            {"dtype": "bfloat16", "prompt_buckets": (8192,), "cache_tokens": 8192, "singles": 4},
            Shape(8192, 24, groups=4, rows=1),
            "mesh prompt_buckets singles cache_tokens weights new_buckets",
        ),
        # One prompt at a time beside a large store.
        (
            {"dtype": "bfloat16", "groups": 1, "group_size": 1, "cache_tokens": 1 << 20},
            Shape(32, 24, groups=1, rows=1),
            "cache_tokens mesh weights prompt_buckets new_buckets",
        ),
    ],
)
def test_what_frees_the_most_is_named_first(
    changes: dict[str, Any], shape: Shape, named: str
) -> None:
    knobs: DecodingKnobs = dataclasses.replace(small.KNOBS, **changes)
    ways = room_made(small.small_model().config, knobs, shape)
    assert [re.findall(r"decoding\.(\w+)", way)[0] for way, _ in ways] == named.split()
    freed = [size for _, size in ways]
    assert freed == sorted(freed, reverse=True)


@pytest.mark.parametrize(
    ("knobs", "largest"),
    [
        ({"prompt_buckets": (ABSURD,), "prefill_chunk": ABSURD}, "prompt_buckets"),
        ({"new_buckets": (ABSURD,)}, "new_buckets"),
    ],
    ids=["while it is built", "in the first round"],
)
def test_an_allocation_that_fails(knobs: dict[str, Any], largest: str) -> None:
    with pytest.raises(WorkError, match="RESOURCE_EXHAUSTED") as raised:
        decode(small.engine(groups=2**12, **knobs))
    said = str(raised.value)
    assert said.count("\n") == 0
    assert f"halve the largest of decoding.{largest}=[{ABSURD}]" in said
    shape = Shape(32, 24, groups=2, rows=3)
    weights = footprint(small.small_model().config, small.KNOBS, shape).weights
    assert f"the weights take {weights / 1e9:.3g} GB" in said
    for knob in ("groups", "group_size", "prompt_buckets", "new_buckets", "cache_tokens", "dtype"):
        assert f"decoding.{knob}" in said
    assert said.index(f"decoding.{largest}") < said.index("decoding.cache_tokens")


def failing(text: str) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise jax.errors.JaxRuntimeError(text)

    return fail


@pytest.mark.parametrize("program", ["prefill", "fill", "decode"])
@pytest.mark.parametrize("text", ["RESOURCE_EXHAUSTED: no room", "INTERNAL: Out of memory"])
def test_a_program_that_fails_for_want_of_memory(
    program: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = small.engine()
    monkeypatch.setattr(engine._programs, program, failing(text))
    with pytest.raises(WorkError, match=f"{text}.*rows of 24 new tokens.*decoding.groups=2"):
        decode(engine)


def test_one_that_fails_for_another_reason_says_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small.engine()
    monkeypatch.setattr(engine._programs, "decode", failing("INTERNAL: a fault"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        decode(engine)


def test_no_memory_for_a_score_is_not_that_rows_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = LocalGenerator(small.small_model(), small.Letters(), small.KNOBS)
    monkeypatch.setattr(generator._engine._programs, "score", failing("RESOURCE_EXHAUSTED"))
    asked = ScoreRequest(id="x", messages=[{"role": "user", "content": "abc"}], completions=["d"])
    with pytest.raises(WorkError, match="decoding has no memory left"):
        list(generator.score([asked]))
