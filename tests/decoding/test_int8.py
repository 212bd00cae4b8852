"""Does a model with matrices in int8 compute what it says, and is only what should be in int8?"""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ste_jax.config.schema import MeshKnobs
from ste_jax.decoding import engine as engine_module
from ste_jax.models.config import SCALE, Lora, ModelConfig
from ste_jax.models.decoder import Decoder, unstack
from ste_jax.models.int8 import quantize, with_int8
from ste_jax.models.parameters import parameters_of, with_parameters
from ste_jax.parallel.sharding import make_mesh
from ste_jax.pipeline import intake
from tests.decoding import small
from tests.decoding.small import LETTERS, collect, prompt, request

LENGTHS = (1, 9, 27)
CONFIG = ModelConfig(
    vocab_size=len(LETTERS),
    hidden_size=24,
    intermediate_size=40,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position=64,
    qkv_bias=True,
    qk_norm=True,
)
KINDS = {
    "untied": CONFIG,
    "tied": dataclasses.replace(CONFIG, tie_embeddings=True),
    "experts": dataclasses.replace(CONFIG, experts=4, experts_per_token=2),
    "lora": dataclasses.replace(CONFIG, lora=Lora(rank=2, alpha=4.0, matrices=("q", "down"))),
}


def model_of(kind: str) -> Decoder:
    """Random weights; small matrices and biases are not zero, as they would start."""
    return small.random_model(KINDS[kind], 7, lambda std: std or 0.3)


def dequantized(model: Decoder) -> Decoder:
    """A plain model of what the int8 matrices of `model` say."""
    kept = parameters_of(with_int8(model, jnp.float32))
    values = {}
    for path, value in kept.items():
        if path.endswith(SCALE):
            continue
        if path + SCALE in kept:
            assert value.dtype == jnp.int8
            scale = np.asarray(kept[path + SCALE])
            shape = parameters_of(model)[path].shape
            # The summed axes stand in one stretch: where the shapes begin to differ.
            while scale.ndim < len(shape):
                at = next(
                    (i for i, (a, b) in enumerate(zip(scale.shape, shape, strict=False)) if a != b),
                    scale.ndim,
                )
                scale = np.expand_dims(scale, at)
                shape = (*shape[:at], 1, *shape[at + 1 :])
            value = jnp.asarray(np.asarray(value, np.float32) * scale)
        values[path] = value
    return with_parameters(model, values)


@pytest.mark.parametrize("summed", [(0,), (1,), (1, 2)])
def test_no_element_is_off_by_more_than_half_a_step_of_its_channel(summed: tuple[int, ...]) -> None:
    matrix = np.random.default_rng(0).normal(size=(6, 5, 7)).astype(np.float32)
    matrix *= np.exp(np.random.default_rng(1).normal(size=(6, 1, 7)))
    matrix[2] = 0
    values, scale = (np.asarray(x) for x in quantize(jnp.asarray(matrix), summed))
    assert values.dtype == np.int8 and values.min() >= -127
    largest = np.abs(matrix).max(axis=summed)
    np.testing.assert_allclose(scale, np.where(largest == 0, 1, largest / 127), rtol=1e-6)
    off = np.abs(values * np.expand_dims(scale, summed) - matrix)
    assert (off <= 0.5001 * np.expand_dims(scale, summed)).all()
    # The largest of each channel is kept, so no coarser scale would do.
    np.testing.assert_array_equal(np.abs(values).max(axis=summed)[largest > 0], 127)
    np.testing.assert_array_equal(values[matrix == 0], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_alone_are_in_int8(kind: str) -> None:
    kept = parameters_of(with_int8(model_of(kind), jnp.bfloat16))
    by_type: dict[Any, set[str]] = {}
    for path, value in kept.items():
        by_type.setdefault(value.dtype, set()).add(path.removeprefix("layers.0."))
    mlp = {"gate", "up", "down"}
    matrices = {
        "q",
        "k",
        "v",
        "o",
        *(f"expert_{name}" if kind == "experts" else name for name in mlp),
    }
    matrices.add("embed" if kind == "tied" else "unembed")
    assert by_type[jnp.dtype(jnp.int8)] == matrices
    assert by_type[jnp.dtype(jnp.float32)] == {name + SCALE for name in matrices}
    assert by_type.keys() == {jnp.dtype(x) for x in (jnp.int8, jnp.float32, jnp.bfloat16)}
    declared = {path.removeprefix("layers.0.") for path in KINDS[kind].parameters()}
    assert by_type[jnp.dtype(jnp.bfloat16)] == declared - matrices


def test_scales_lie_where_their_outputs_do() -> None:
    model = with_int8(model_of("experts"), jnp.float32)
    for form in (model, unstack(model)):
        _, state = nnx.split(form)
        for path, variable in nnx.to_flat_state(state):
            assert len(variable.axes) == variable.get_value().ndim, path
    scales = {name: model.layers[0][name + SCALE].axes for name in ("q", "o", "expert_down")}
    assert scales == {
        "q": ("layers", "q_heads", "head_dim"),
        "o": ("layers", "embed"),
        "expert_down": ("layers", "experts", "embed"),
    }


def test_the_dequantized_model_is_another_one_but_not_far() -> None:
    """Else the comparison of the two would say nothing."""
    model, tokens = model_of("tied"), prompt(0, 30).tokens
    off = np.abs(
        small.full_logprobs(dequantized(model), tokens) - small.full_logprobs(model, tokens)
    )
    assert 1e-3 < off.mean() < 0.3


def run(model: Decoder, **more: Any) -> tuple[list[tuple[int, ...]], Any]:
    engine = small.engine(model, groups=4, **more)
    for length in LENGTHS:
        one = request(str(length), max_new_tokens=20, ignore_eos=True)
        engine.submit(one, prompt(length, length))
    found = collect(engine.completions())
    scores = engine.score("s", prompt(0, 20), [prompt(i, 6).tokens for i in range(3)])
    return [found[str(length), 0].token_ids for length in LENGTHS], np.array(scores)


@functools.cache
def of_dequantized(kind: str) -> tuple[list[tuple[int, ...]], Any]:
    return run(dequantized(model_of(kind)))


@pytest.mark.parametrize(
    ("kind", "as_list", "tensor"),
    [
        ("untied", True, 0),
        ("tied", False, 0),
        ("lora", False, 0),
        ("experts", False, 0),
        ("tied", True, 2),
        ("untied", False, 2),
        ("experts", False, 2),
    ],
)
def test_the_engine_draws_what_the_dequantized_model_draws(
    kind: str, as_list: bool, tensor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, want_scores = of_dequantized(kind)
    monkeypatch.setattr(engine_module, "layers_as_list", lambda: as_list)
    mesh = make_mesh(MeshKnobs(data=1, fsdp=2, expert=2, tensor=tensor)) if tensor else None
    found, scores = run(model_of(kind), weights="int8", mesh=mesh)
    assert found == want
    assert len(set(found)) == len(LENGTHS)
    np.testing.assert_allclose(scores, want_scores, atol=1e-4)


def test_another_kind_of_weights_is_another_answerer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "model_of", lambda iteration: "f00d")
    said = [
        intake.answers_of(SimpleNamespace(config=SimpleNamespace(decoding=knobs)), iteration=None)
        for knobs in (
            small.KNOBS,
            dataclasses.replace(small.KNOBS, weights="int8"),
            dataclasses.replace(small.KNOBS, dtype="bfloat16"),
        )
    ]
    assert said[0] == "f00d/float32"  # as it was before there was a choice
    assert len(set(said)) == 3
