"""Is nothing compiled any more once every shape has been seen?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from ste_jax.config.schema import MeshKnobs
from ste_jax.decoding import attend as attend_module
from ste_jax.decoding import engine as engine_module
from ste_jax.decoding.engine import Engine
from ste_jax.decoding.scoring import width
from ste_jax.parallel.sharding import make_mesh
from tests.decoding import small
from tests.decoding.small import collect, prompt, request

SHAPES: dict[str, Any] = {
    "prompt_buckets": (12, 28),
    "new_buckets": (6, 24),
    "groups": 4,
    "group_size": 2,
    "singles": 8,
    "prefill_chunk": 4,
    "steps_per_round": 3,
}
"""Those of no other test: what that had compiled would not be counted here."""
PROGRAMS = {
    "decode": 16,  # two prompt buckets, alone or not; of new tokens 1, or 1, 2 and 4 blocks
    "fill": 4,  # two prompt buckets, alone or not
    "_prefill": 1,
    "load": 1,
    "_score": 4,  # widths 1, 4, 16 and 24
}


@contextlib.contextmanager
def compilations() -> Iterator[Counter[str]]:
    """What is traced and compiled meanwhile: how often each function is."""
    seen: Counter[str] = Counter()

    def listen(event: str, seconds: float, **more: Any) -> None:
        del seconds
        if event.startswith("/jax/core/compile/"):
            seen[f"{event.rpartition('/')[2]} {more.get('fun_name')}"] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def first_pass(engine: Engine) -> None:
    """A request in every shape, a prompt that comes back, and scores of every width."""
    for length in (3, 20):
        for new in (2, 24):
            for alone in (False, True):
                one = request(f"{length}{new}{alone}", max_new_tokens=new, ignore_eos=True)
                engine.submit(dataclasses.replace(one, alone=alone), prompt(length, length))
    collect(engine.completions())
    for seed in (20, 3):
        engine.submit(request("back"), prompt(seed, seed))
        collect(engine.completions())
    for size in sorted({width(length, 24) for length in range(1, 25)}):
        engine.score("s", prompt(0, 9), [(5,) * size])


def many_requests(engine: Engine) -> int:
    """Waves of requests of every length, sampling, stop and shape; returns how many ended early."""
    draw, early = np.random.default_rng(0), 0
    for wave in range(4):
        for i in range(16):
            one = request(
                f"{i}",
                range(3 * wave, 3 * wave + 1 + i % 3),
                max_new_tokens=int(draw.integers(1, 25)),
                temperature=(0.0, 0.8)[i % 2],
                top_p=(1.0, 0.9)[i % 3 == 1],
                top_k=(0, 5)[i % 5 == 1],
                min_p=(0.0, 0.1)[i % 7 == 1],
                stop=("a", "bc") if i % 4 == 1 else (),
                ignore_eos=i % 3 == 0,
            )
            tokens = prompt(i % 9, int(draw.integers(1, 29)))
            engine.submit(dataclasses.replace(one, alone=i % 3 == 0), tokens)
            engine.submit(request(f"wrong{i}", max_new_tokens=25), tokens)
        early += sum(one.finish_reason == "stop" for one in engine.completions())
        for i in range(0, 16, 2):
            engine.release(f"{i}")
        lengths = draw.integers(0, 25, 20)
        engine.score("s", prompt(wave, 1 + 9 * wave), [(5,) * int(length) for length in lengths])
    return early


@pytest.mark.parametrize(
    ("mesh", "as_list"),
    [
        (None, True),
        pytest.param(MeshKnobs(fsdp=8), True, marks=pytest.mark.slow),
        pytest.param(MeshKnobs(data=2, fsdp=2, tensor=2), False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_many_requests_after_a_first_pass_compile_nothing(
    mesh: MeshKnobs | None, as_list: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "layers_as_list", lambda: as_list)
    monkeypatch.setattr(attend_module, "PAST_BLOCK", 7)
    with compilations() as before:
        engine = small.engine(mesh=mesh and make_mesh(mesh), **SHAPES)
        first_pass(engine)
    programs = {name: before[f"backend_compile_duration jit({name})"] for name in PROGRAMS}
    assert programs == PROGRAMS
    with compilations() as after:
        ended_early = many_requests(engine)
    assert not after
    assert ended_early > 20
