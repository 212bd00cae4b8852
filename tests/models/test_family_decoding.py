"""The decoding engine draws what a full pass says, in every family, past the window and on meshes.

Greedy tokens and their log-probabilities by the engine (prefill in chunks, one token at a time)
against transformers' own full pass over the same tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.load_weights import load_weights
from ste_jax.parallel.sharding import make_mesh
from tests.decoding.small import collect, engine, prompt, request
from tests.models.families import BY_NAME, FAMILIES, WINDOW, make
from tests.models.reference import torch_logits

ONE = make_mesh(MeshKnobs(), jax.devices()[:1])
SHAPES = {"prompt_buckets": (16,), "new_buckets": (16,), "groups": 4, "group_size": 2}
LENGTHS, NEW = (13, 4), 15


def drawn(directory: Path, knobs: MeshKnobs | None) -> dict:
    """What the engine draws of two prompts, two samples each, and scores of one of them."""
    mesh = ONE if knobs is None else make_mesh(knobs)
    made = engine(load_weights(directory, mesh), mesh, **SHAPES)
    for index, length in enumerate(LENGTHS):
        asked = request(f"r{index}", samples=(0, 1), max_new_tokens=NEW, temperature=0.0)
        made.submit(asked, prompt(index, length, letters=30))
    found = collect(made.completions())
    completion = list(found["r0", 0].token_ids)
    (scores,) = made.score("r0", prompt(0, LENGTHS[0], letters=30), [completion])
    return found | {"scores": scores}


def check(reference, found: dict) -> None:
    """Every token is the likeliest, and its log-probability is the reference's."""
    assert max(LENGTHS) > WINDOW < NEW, "the windows slide"
    for index, length in enumerate(LENGTHS):
        for sample in (0, 1):
            one = found[f"r{index}", sample]
            tokens = [*prompt(index, length, letters=30).tokens, *one.token_ids]
            logits = torch.from_numpy(torch_logits(reference, np.array([tokens]))[0])
            expected = torch.log_softmax(logits, -1)[length - 1 : -1].numpy()
            chosen = expected[np.arange(len(one.token_ids)), list(one.token_ids)]
            np.testing.assert_allclose(one.logprobs, chosen, atol=2e-4)
            np.testing.assert_allclose(chosen, expected.max(-1), atol=2e-4)
    np.testing.assert_allclose(found["scores"], found["r0", 0].logprobs, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "stacked"),
    [*((name, False) for name in FAMILIES), ("llama-3.1", True), ("gemma3", True)],
)
def test_the_engine_draws_what_the_reference_says(
    name: str, stacked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ste_jax.decoding.engine.layers_as_list", lambda: not stacked)
    reference = make(name, tmp_path)
    check(reference, drawn(tmp_path, None))


MESHES = [MeshKnobs(fsdp=8), MeshKnobs(fsdp=1, tensor=8), MeshKnobs(data=2, fsdp=2, tensor=2)]
OF_EXPERTS = MeshKnobs(fsdp=2, expert=2, tensor=2)


def cases() -> list[Any]:
    """Every family on every mesh; each family on one of them, by turns, is among the fast ones."""
    found = []
    for number, name in enumerate(FAMILIES):
        meshes = [*MESHES, OF_EXPERTS] if BY_NAME[name].experts else MESHES
        for knobs in meshes:
            fast = knobs == meshes[number % len(meshes)]
            found.append(pytest.param(name, knobs, marks=() if fast else pytest.mark.slow))
    return found


@pytest.mark.parametrize(("name", "knobs"), cases())
def test_it_does_on_a_mesh(
    name: str, knobs: MeshKnobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ste_jax.decoding.engine.layers_as_list", lambda: False)
    reference = make(name, tmp_path)
    check(reference, drawn(tmp_path, knobs))
