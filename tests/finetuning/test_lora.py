"""Small matrices in the place of large ones: what they compute, what is trained, what is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from ste_jax.config.schema import LoraKnobs, MeshKnobs
from ste_jax.finetuning.attention import packed_causal
from ste_jax.finetuning.lora import is_trained, merged, with_small_matrices
from ste_jax.models.config import LayerKind
from ste_jax.models.decoder import Decoder, unstack
from ste_jax.models.parameters import parameters_of, with_parameters
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system.errors import Preempted, RequestError
from tests.finetuning.small import CONFIG, ONE, Trained, arrays_of, small_model

KNOBS = LoraKnobs(rank=3, alpha=6.0)
KINDS = (LayerKind(window=4), LayerKind())
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 9))
WHERE = np.broadcast_to(np.arange(9), (2, 9))


def hidden(model: Decoder) -> jax.Array:
    return model(TOKENS, WHERE, packed_causal(jnp.ones((2, 9), int), jnp.asarray(WHERE)))[0]


def drawn(knobs: LoraKnobs = KNOBS, mesh: Any = ONE) -> Decoder:
    """A model whose small matrices add something; of three layers, one of them of no cycle."""
    config = dataclasses.replace(CONFIG, num_layers=3, kinds=KINDS)
    model = with_small_matrices(small_model(config), knobs, 0, mesh)
    values = parameters_of(model)
    draw = np.random.default_rng(1)
    for path, value in values.items():
        if path.endswith("_lora_b"):
            values[path] = jnp.asarray(0.3 * draw.normal(size=value.shape), value.dtype)
    return with_parameters(model, values)


def test_they_add_nothing_at_first() -> None:
    model = small_model()
    before = hidden(model)
    assert np.array_equal(hidden(with_small_matrices(model, KNOBS, 0, ONE)), before)


@pytest.mark.parametrize("matrices", [KNOBS.matrices, ("q", "o"), ("down",)])
def test_what_is_merged_computes_the_same(matrices: tuple[str, ...]) -> None:
    model = drawn(dataclasses.replace(KNOBS, matrices=matrices))
    whole = merged(model)
    assert whole.config.lora is None
    assert whole.config.parameters().keys() == parameters_of(whole).keys()
    expected = hidden(model)
    np.testing.assert_allclose(hidden(whole), expected, atol=2e-5)
    np.testing.assert_allclose(hidden(unstack(model)), expected, atol=2e-5)
    fixed = arrays_of(model)
    changed = {path for path, value in arrays_of(whole).items() if (value != fixed[path]).any()}
    assert changed == {f"layers.{group}.{name}" for group in range(3) for name in matrices}
    assert merged(whole) is whole


def test_their_gradient_is_the_large_matrices_own_seen_through_them() -> None:
    model = drawn()
    values, whole = parameters_of(model), merged(model)

    def loss(of: Decoder, params: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum(jnp.square(hidden(with_parameters(of, params))))

    ours = jax.jit(jax.grad(lambda params: loss(model, params)))(values)
    large = jax.jit(jax.grad(lambda params: loss(whole, params)))(parameters_of(whole))
    assert model.config.lora is not None
    for path in (f"layers.{group}.{name}" for group in range(3) for name in KNOBS.matrices):
        narrow, wide = values[path + "_lora_a"], values[path + "_lora_b"]
        rank = (1, narrow[0].size // 3, 3)
        gradient = model.config.lora.scale * large[path].reshape(1, rank[1], -1)
        np.testing.assert_allclose(
            ours[path + "_lora_a"].reshape(rank),
            gradient @ wide.reshape(1, 3, -1).swapaxes(1, 2),
            atol=1e-3,
        )
        np.testing.assert_allclose(
            ours[path + "_lora_b"].reshape(1, 3, -1),
            narrow.reshape(rank).swapaxes(1, 2) @ gradient,
            atol=1e-3,
        )


def test_on_a_mesh_they_are_the_same() -> None:
    mesh = make_mesh(MeshKnobs(data=2, fsdp=2, tensor=2))
    one, other = (with_small_matrices(small_model(), KNOBS, 0, m) for m in (ONE, mesh))
    assert all(np.array_equal(v, arrays_of(other)[p]) for p, v in arrays_of(one).items())
    gate = parameters_of(other)["layers.0.gate_lora_b"]
    assert gate.sharding.shard_shape(gate.shape) == (2, 3, CONFIG.intermediate_size // 2)


def test_a_fine_tuning_learns_keeps_ordinary_models_and_goes_on(tmp_path: Path) -> None:
    trained, stopped = (Trained(epath.Path(tmp_path / each), lora=KNOBS) for each in "ab")
    before = arrays_of(small_model())
    result = trained.run()
    assert result.steps[-1]["loss"] < result.steps[0]["loss"]
    assert trained.kept is not None
    changed = {path for path, value in trained.kept[1].items() if (value != before[path]).any()}
    assert changed == {f"layers.0.{name}" for name in KNOBS.matrices}

    polls = iter([False] * 5 + [True])
    stopped.stop = lambda: next(polls)
    with pytest.raises(Preempted):
        stopped.run()
    home = next((tmp_path / "b" / "state").iterdir())
    names = " ".join(path.read_text() for path in home.rglob("_METADATA"))
    assert "q_lora_a" in names and "layers.0.q'" not in names and "embed" not in names
    stopped.stop = lambda: False
    assert stopped.run() == result
    assert stopped.kept is not None
    assert all(np.array_equal(v, trained.kept[1][p]) for p, v in stopped.kept[1].items())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"matrices": ("q", "kv")}, "'kv' is no matrix; known are q, k, v, o, gate, up, down"),
        ({"rank": -1}, "rank is a positive number"),
        ({"alpha": 0.0}, "alpha is above 0"),
        ({"matrices": ()}, "at least one matrix"),
    ],
)
def test_knobs_that_cannot_be_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        with_small_matrices(small_model(), dataclasses.replace(KNOBS, **changes), 0, ONE)


def test_experts_get_none() -> None:
    config = dataclasses.replace(CONFIG, experts=4, experts_per_token=2)
    model = with_small_matrices(small_model(config), KNOBS, 0, ONE)
    small = {p.rpartition(".")[2] for p in parameters_of(model) if is_trained(model.config, p)}
    assert small == {f"{name}_lora_{end}" for name in "qkvo" for end in "ab"}
    inner = dataclasses.replace(KNOBS, matrices=("gate", "up", "down"))
    with pytest.raises(RequestError, match="the model has none of gate, up, down"):
        with_small_matrices(small_model(config), inner, 0, ONE)
