"""Are samples the same on 8 devices as on one, and with the layers compiled as a loop?"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from ste_jax.config.schema import MeshKnobs
from ste_jax.decoding import engine as engine_module
from ste_jax.decoding.engine import Engine
from ste_jax.parallel.sharding import make_mesh
from tests.decoding import small
from tests.decoding.small import collect, prompt, request

LENGTHS = (4, 9, 27)


def run(engine: Engine) -> tuple[dict[Any, Any], Any]:
    for i, length in enumerate(LENGTHS):
        for temperature in (0.0, 0.8):
            one = request(
                f"{i}{temperature}",
                (0, 1),
                temperature=temperature,
                top_p=0.9,
                top_k=20,
                max_new_tokens=12,
            )
            engine.submit(one, prompt(i, length))
    samples = collect(engine.completions())
    scores = engine.score("s", prompt(0, 20), [prompt(i, 6).tokens for i in range(3)])
    return samples, np.array(scores)


def assert_same(found: tuple[dict[Any, Any], Any], want: tuple[dict[Any, Any], Any]) -> None:
    for key, one in want[0].items():
        assert found[0][key].token_ids == one.token_ids
        np.testing.assert_allclose(found[0][key].logprobs, one.logprobs, atol=1e-5)
    np.testing.assert_allclose(found[1], want[1], atol=1e-5)


@pytest.fixture(scope="module")
def one_device() -> tuple[dict[Any, Any], Any]:
    return run(small.engine(groups=4))


@pytest.mark.parametrize(
    ("sizes", "as_list"),
    [((1, 8, 1), True), ((2, 2, 2), False)],
)
def test_eight_devices_give_what_one_gives(
    sizes: tuple[int, int, int],
    as_list: bool,
    one_device: tuple[dict[Any, Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "layers_as_list", lambda: as_list)
    data, fsdp, tensor = sizes
    mesh = make_mesh(MeshKnobs(data=data, fsdp=fsdp, tensor=tensor))
    assert len(jax.devices()) == mesh.size == 8
    assert_same(run(small.engine(groups=4, mesh=mesh)), one_device)
