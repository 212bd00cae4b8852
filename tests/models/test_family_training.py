"""Every family's gradients are torch's, and logits and gradients are the same on any mesh.

By the attention and the loss of fine-tuning, with layers computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ste_jax.config.schema import MeshKnobs
from ste_jax.finetuning.attention import packed_causal
from ste_jax.finetuning.loss import target_scores
from ste_jax.model_io.families import family_of
from ste_jax.model_io.load_weights import load_weights
from ste_jax.model_io.tensor_layout import to_file
from ste_jax.model_io.tensor_map import stored
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import parameters_of, with_parameters
from ste_jax.parallel.sharding import make_mesh
from tests.models.families import BY_NAME, FAMILIES, make
from tests.models.reference import QUICK

ROWS, TIME, FROM = 8, 23, 9
"""Targets are the tokens from `FROM` on, as of a completion after its prompt."""
TOKENS = np.random.default_rng(0).integers(0, 33, (ROWS, TIME))
MESHES = {
    "one": MeshKnobs(),
    "fsdp": MeshKnobs(fsdp=8),
    "tensor": MeshKnobs(fsdp=1, tensor=8),
    "mixed": MeshKnobs(data=2, fsdp=2, tensor=2),
    "expert": MeshKnobs(fsdp=1, expert=4, tensor=2),
    "expert-mixed": MeshKnobs(fsdp=2, expert=4),
}
SLOW = pytest.mark.slow
Reference = tuple[Any, np.ndarray, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """By family: the model's directory, its logits, and the gradient of the mean loss by tensor."""
    known: dict[str, Reference] = {}

    def of(name: str) -> Reference:
        if name not in known:
            directory = tmp_path_factory.mktemp(name)
            model = make(name, directory)
            tokens = torch.from_numpy(TOKENS)
            logits = model(tokens).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, FROM - 1 : -1].reshape(-1, logits.shape[-1]), tokens[:, FROM:].reshape(-1)
            )
            losses.backward()
            grads = {each: value.grad.numpy() for each, value in model.named_parameters()}
            known[name] = directory, logits.detach().numpy(), grads
        return known[name]

    return of


def logits_and_gradients(model: Decoder) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    positions = np.broadcast_to(np.arange(TIME), (ROWS, TIME))
    attend = packed_causal(jnp.ones((ROWS, TIME), jnp.int32), positions)
    target_at = jnp.broadcast_to(jnp.arange(FROM - 1, TIME - 1), (ROWS, TIME - FROM))
    targets = jnp.asarray(TOKENS[:, FROM:])

    @partial(jax.jit, compiler_options=QUICK)
    def run(params: dict[str, jax.Array]) -> Any:
        def loss(params: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            ours = with_parameters(model, params)
            hidden, _ = ours(jnp.asarray(TOKENS), positions, attend, remat=True)
            scores = target_scores(ours.logits, hidden, target_at, targets)
            return -jnp.mean(scores.logprob), ours.logits(hidden)

        return jax.grad(loss, has_aux=True)(params)

    grads, logits = run(parameters_of(model))
    return np.asarray(logits), {path: np.asarray(value) for path, value in grads.items()}


def cases() -> list[Any]:
    """Every family on every mesh that it can lie on. Among the fast ones each is on one device and,
    by turns, on one mesh."""
    found = []
    for number, name in enumerate(FAMILIES):
        experts = BY_NAME[name].experts
        turns = [mesh for mesh in MESHES if ("expert" in mesh) == experts and mesh != "one"]
        fast = ("one", turns[number % len(turns)])
        for mesh in MESHES:
            if experts or "expert" not in mesh:
                found.append(pytest.param(name, mesh, marks=() if mesh in fast else SLOW))
    return found


@pytest.mark.parametrize(("name", "mesh"), cases())
def test_logits_and_gradients(name: str, mesh: str, reference: Any) -> None:
    directory, expected, torch_grads = reference(name)
    placed = make_mesh(MESHES[mesh], jax.devices()[: 1 if mesh == "one" else 8])
    model = load_weights(directory, placed)
    with jax.set_mesh(placed):
        logits, grads = logits_and_gradients(model)
    np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=0)

    for path, theirs in by_path(model, torch_grads).items():
        size = np.linalg.norm(theirs)
        assert size > 1e-6, f"{path}: nothing to compare"
        assert np.linalg.norm(grads[path] - theirs) < 1e-3 * size, path


def by_path(model: Decoder, grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Torch's gradients in the form of our parameters."""
    out = {}
    weights = family_of(model.config.model_type, "").weights
    for path, one in stored(model.config, weights, lambda weight: weight.hf).items():
        value = np.zeros(one.parameter.shape, np.float32)
        for place in one.places():
            theirs = _named(grads, one.name(place))
            # The layout's inverse, by the numbers of the elements.
            numbers = np.arange(theirs.size).reshape([one.sizes[axis] for axis in one.axes])
            order = to_file(numbers, one.axes, one.layout).ravel()
            flat = np.empty(theirs.size, np.float32)
            flat[order] = theirs.ravel()
            value[place] = flat.reshape(numbers.shape)
        out[path] = value
    return out


def _named(grads: dict[str, np.ndarray], name: str) -> np.ndarray:
    """By the name in the file; in transformers' modules experts are stacked."""
    if name in grads:
        return grads[name]
    *_, part, expert, matrix, _ = name.split(".")
    if part != "experts":  # the router, which has another name in a Mixtral's file
        return grads[name.replace("block_sparse_moe", "mlp")]
    home = f"model.layers.{name.split('.')[2]}.mlp.experts"
    if matrix in ("w2", "down_proj"):
        return grads[f"{home}.down_proj"][int(expert)]
    gate, up = np.split(grads[f"{home}.gate_up_proj"][int(expert)], 2)
    return gate if matrix in ("w1", "gate_proj") else up
