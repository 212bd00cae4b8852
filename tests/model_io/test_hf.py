"""HF directories: every form of their weights, read and written, and every way to break them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.hf import HFDirectory, save_hf
from ste_jax.model_io.load_weights import load_weights, open_weights
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system.errors import RequestError
from tests.models.reference import our_logits, torch_logits

ONE = make_mesh(MeshKnobs(), jax.devices()[:1])
TOKENS = np.random.default_rng(0).integers(0, 37, (3, 19))


def test_several_files_under_an_index(make_llama: Any, tmp_path: Path) -> None:
    model = make_llama()
    model.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    same_weights(load_weights(tmp_path / "parts", ONE), load_weights(tmp_path / "hf", ONE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read_exactly(
    make_llama: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    reference = make_llama(dtype=dtype)
    ours = load_weights(tmp_path / "hf", ONE)
    up = reference.model.layers[1].mlp.up_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(ours.layers[0]["up"].get_value()[1], up.T)
    # Not `reference.float()`: its rotary table was rounded with the weights.
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    logits = torch_logits(reference, TOKENS)
    np.testing.assert_allclose(our_logits(ours, TOKENS), logits, atol=1e-4)


def test_parameters_are_kept_in_the_type_asked_for(make_llama: Any, tmp_path: Path) -> None:
    make_llama()
    model = load_weights(tmp_path / "hf", ONE, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)
    exact = load_weights(tmp_path / "hf", ONE)
    value = model.layers[0]["down"].get_value()
    assert value.dtype == jnp.bfloat16
    np.testing.assert_array_equal(value, exact.layers[0]["down"].get_value().astype(jnp.bfloat16))


@pytest.mark.parametrize("knobs", [MeshKnobs(), MeshKnobs(data=2, fsdp=2, tensor=2)])
def test_a_sharded_load_holds_the_same_weights(
    make_llama: Any, tmp_path: Path, knobs: MeshKnobs
) -> None:
    make_llama(attention_bias=True, mlp_bias=True)
    sharded = load_weights(tmp_path / "hf", make_mesh(knobs))
    down = sharded.layers[0]["down"].get_value()
    assert len(down.sharding.device_set) == 8
    assert down.sharding.shard_shape(down.shape) != down.shape
    same_weights(sharded, load_weights(tmp_path / "hf", ONE))


def test_each_shard_reads_its_own_slices_once(
    make_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_llama()
    read = HFDirectory.read
    sizes: dict[str, list[int]] = {}

    def spy(self: HFDirectory, name: str, index: tuple[slice, ...]) -> np.ndarray:
        out = read(self, name, index)
        sizes.setdefault(name, []).append(out.size)
        return out

    monkeypatch.setattr(HFDirectory, "read", spy)
    load_weights(tmp_path / "hf", make_mesh(MeshKnobs(data=2, fsdp=2, tensor=2)))
    # 24 x 28 over fsdp and tensor: four quarters, each read once though two devices hold it.
    assert sizes["model.layers.0.mlp.gate_proj.weight"] == [24 * 28 // 4] * 4
    assert sizes["model.layers.0.self_attn.q_proj.weight"] == [24 * 48 // 4] * 4
    assert sizes["model.norm.weight"] == [12] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 77.0}},
    ],
    ids=["tied", "biases", "linear"],
)
def test_what_we_write_transformers_reads(
    make_llama: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    reference = make_llama(**changes)
    save_hf(load_weights(tmp_path / "hf", ONE), tmp_path / "ours")
    back = LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    for name, value in reference.state_dict().items():
        assert torch.equal(value, back.state_dict()[name]), name
    np.testing.assert_allclose(
        torch_logits(back, TOKENS), torch_logits(reference, TOKENS), atol=1e-6
    )


def test_bfloat16_is_written_as_bfloat16(make_llama: Any, tmp_path: Path) -> None:
    make_llama()
    save_hf(load_weights(tmp_path / "hf", ONE, param_dtype=jnp.bfloat16), tmp_path / "ours")
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_repeated_tied_matrix_and_old_rotary_tables_are_passed_over(
    make_llama: Any, tmp_path: Path
) -> None:
    make_llama(tie_word_embeddings=True)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit(tmp_path / "hf", add)
    assert "unembed" not in vars(load_weights(tmp_path / "hf", ONE))


def test_a_tied_model_that_holds_another_output_matrix_is_refused(
    make_llama: Any, tmp_path: Path
) -> None:
    make_llama(tie_word_embeddings=True)

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    edit(tmp_path / "hf", add)
    with pytest.raises(RequestError, match=r"lm_head\.weight is another than .*tie_word"):
        open_weights(tmp_path / "hf")


def test_a_model_that_no_config_describes_is_not_written(make_llama: Any, tmp_path: Path) -> None:
    make_llama(attention_bias=True)
    model = load_weights(tmp_path / "hf", ONE)
    model.config = dataclasses.replace(model.config, o_bias=False)
    with pytest.raises(RequestError, match="o_bias is False, and what would be written says True"):
        save_hf(model, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_the_processes_of_a_job_load_one_model_together(make_llama: Any, tmp_path: Path) -> None:
    reference = make_llama()
    port = free_port()
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(script), str(tmp_path), str(port)]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, cwd=root)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    logits = np.load(tmp_path / "logits.npy")
    tokens = np.arange(32).reshape(4, 8)
    np.testing.assert_allclose(logits, torch_logits(reference, tokens), atol=1e-4)


# ---------------------------------------------------------------------------------------------
# Broken directories


def drop_config(path: Path) -> None:
    (path / "config.json").unlink()


def drop_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def only_pickles(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def malformed_config(path: Path) -> None:
    (path / "config.json").write_text('{"model_type": "llama"', encoding="utf-8")


def list_config(path: Path) -> None:
    (path / "config.json").write_text("[]", encoding="utf-8")


def wrong_type(path: Path) -> None:
    edit_config(path, hidden_size="24")


def unknown_architecture(path: Path) -> None:
    edit_config(path, model_type="gptj")


def wider_config(path: Path) -> None:
    edit_config(path, intermediate_size=30)


def deeper_config(path: Path) -> None:
    edit_config(path, num_hidden_layers=4)


def endless_config(path: Path) -> None:
    edit_config(path, num_hidden_layers=100_000_000)


def endless_experts(path: Path) -> None:
    edit_config(path, model_type="mixtral", num_local_experts=10**9)


def shallower_config(path: Path) -> None:
    edit_config(path, num_hidden_layers=2)


def biased_config(path: Path) -> None:
    edit_config(path, attention_bias=True)


def truncated(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def garbage(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def integers(path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)

    edit(path, change)


def missing_part(path: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def empty_index(path: Path) -> None:
    (path / "model.safetensors.index.json").write_text("{}", encoding="utf-8")


def outside(path: Path) -> None:
    index = {"weight_map": {"a": "../model.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def twice(path: Path) -> None:
    copy = path / "other.safetensors"
    copy.write_bytes((path / "model.safetensors").read_bytes())
    index = {"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (drop_config, r"config\.json is missing"),
        (drop_weights, r"model\.safetensors is missing"),
        (only_pickles, r"pytorch_model\.bin is a pickle"),
        (malformed_config, r"config\.json: not readable as JSON"),
        (list_config, r"config\.json: a JSON object"),
        (wrong_type, r"config\.json: "),
        (unknown_architecture, r"config\.json: architecture 'gptj'"),
        (wider_config, r"gate_proj\.weight has shape \[28, 24\].*\[30, 24\]"),
        (deeper_config, r"model\.layers\.3\.\S+ \(and 8 more\) is missing"),
        (endless_config, r"num_hidden_layers is 100000000, and \S+ holds 30 tensors"),
        (
            endless_experts,
            r"is missing; the config describes \d{10} tensors, and the file holds 30",
        ),
        (shallower_config, r"model\.layers\.2\.\S+ \(and 8 more\) is not part of the model"),
        (biased_config, r"q_proj\.bias \(and 11 more\) is missing"),
        (truncated, r"model\.safetensors: not a whole safetensors file"),
        (garbage, r"model\.safetensors: not a whole safetensors file"),
        (integers, r"model\.norm\.weight has type I8"),
        (missing_part, r"model-00002-of-00002\.safetensors is missing"),
        (empty_index, r"index\.json: has no weight_map"),
        (twice, r"also in another file"),
        (outside, r"names a file that is not beside it"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_directory_is_refused_by_name_before_anything_is_read(
    make_llama: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[Path], None],
    told: str,
) -> None:
    make_llama()
    breaks(tmp_path / "hf")

    def read(*_: Any) -> Any:
        raise AssertionError("read before the check was done")

    monkeypatch.setattr(HFDirectory, "read", read)
    with pytest.raises(RequestError, match=told) as caught:
        open_weights(tmp_path / "hf")
    assert str(tmp_path / "hf") in str(caught.value)
    assert "\n" not in str(caught.value)


def same_weights(ours: Any, theirs: Any) -> None:
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (ours, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def edit_config(path: Path, **changes: Any) -> None:
    values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(values | changes), encoding="utf-8")


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
