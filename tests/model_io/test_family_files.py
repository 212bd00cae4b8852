"""Every family's directory: read, written, read again, and read by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.hf import save_hf
from ste_jax.model_io.load_weights import load_weights
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.sharding import make_mesh
from tests.models.families import CASES, FAMILIES, make
from tests.models.reference import torch_logits

ONE = make_mesh(MeshKnobs(), jax.devices()[:1])
TOKENS = np.random.default_rng(0).integers(0, 33, (2, 23))


def same(one: object, other: object) -> bool:
    ours, theirs = parameters_of(one), parameters_of(other)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[path], theirs[path]) for path in ours
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_written_is_the_same_model_to_us_and_to_transformers(case, tmp_path: Path) -> None:
    reference = make(case, tmp_path / "hf")
    ours = load_weights(tmp_path / "hf", ONE)
    save_hf(ours, tmp_path / "ours")
    again = load_weights(tmp_path / "ours", ONE)
    assert again.config == ours.config
    assert same(again, ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    for name, value in reference.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert np.array_equal(torch_logits(theirs, TOKENS), torch_logits(reference, TOKENS))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_written_config_says_what_the_original_says(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "hf")
    save_hf(load_weights(tmp_path / "hf", ONE), tmp_path / "ours")
    told, expected = (
        AutoConfig.from_pretrained(tmp_path / each).to_dict() for each in ("ours", "hf")
    )
    without = {"dtype", "transformers_version", "_name_or_path", "pad_token_id", "hidden_act"}
    without |= {"bos_token_id", "eos_token_id", "max_window_layers", "intermediate_size"}
    without |= {"sliding_window_pattern", "_sliding_window_pattern"}  # layer_types go before it
    differ = {key for key in told.keys() | expected if told.get(key) != expected.get(key)}
    assert differ <= without


@pytest.mark.parametrize("name", ["gemma3", "mixtral"])
def test_in_shards_and_from_a_mesh(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "hf")
    mesh = make_mesh(MeshKnobs(fsdp=2, expert=2, tensor=2))
    ours = load_weights(tmp_path / "hf", mesh, param_dtype=jnp.bfloat16)
    told: list[int] = []
    save_hf(ours, tmp_path / "ours", shard_bytes=8000, progress=told.append)
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    total = index["metadata"]["total_size"]
    assert total == sum(told) == 2 * ours.config.parameter_count()
    for file in files:
        tensors = load_file(file)
        assert sum(value.nbytes for value in tensors.values()) <= 8000
        assert {index["weight_map"][each] for each in tensors} == {file.name}
    again = load_weights(tmp_path / "ours", ONE, param_dtype=jnp.bfloat16)
    assert same(again, ours)
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
