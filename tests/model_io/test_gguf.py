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
from transformers import PreTrainedModel

from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.gguf import GGUFFile
from ste_jax.model_io.hf import save_hf
from ste_jax.model_io.load_weights import load_weights, open_weights
from ste_jax.model_io.sources import Source
from ste_jax.models.config import RopeScaling
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system.errors import RequestError
from tests.models import smollm2
from tests.models.families import BY_NAME, LLAMA3, make
from tests.models.reference import our_logits, torch_logits

ONE = make_mesh(MeshKnobs(), jax.devices()[:1])
TOKENS = np.random.default_rng(0).integers(0, 37, (3, 19))


ARCHITECTURES = {
    "llama": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
}
"""What llama.cpp calls the families."""


def write_gguf(
    file: Path,
    model: PreTrainedModel,
    quantized: Type = Type.F32,
    extra: dict[str, np.ndarray] | None = None,
    leave_out: tuple[str, ...] = (),
    **metadata: Any,
) -> None:
    """Writes `model` as llama.cpp's converter does; `metadata` replaces keys (dots as `__`)."""
    config = model.config
    arch = ARCHITECTURES[config.model_type]
    rope = config.rope_parameters
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
    }
    if arch == "llama":
        values["rope.dimension_count"] = config.head_dim
        values["vocab_size"] = config.vocab_size
    if config.model_type == "mixtral":
        values["expert_count"] = config.num_local_experts
        values["expert_used_count"] = config.num_experts_per_tok
    if arch == "qwen3moe":
        values["expert_count"] = config.num_experts
        values["expert_used_count"] = config.num_experts_per_tok
        values["expert_feed_forward_length"] = config.moe_intermediate_size
    if arch == "gemma3":
        values["attention.sliding_window"] = config.sliding_window
        values["rope.scaling.type"] = "linear"
        values["rope.scaling.factor"] = rope["full_attention"]["factor"]
    values = {f"{arch}.{key}": value for key, value in values.items()}
    values |= {key.replace("__", "."): value for key, value in metadata.items()}
    writer = gguf.GGUFWriter(str(file), values.pop("arch", arch))
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, tensor in [*tensors_as_llama_cpp(model, arch), *(extra or {}).items()]:
        kind = quantized if tensor.ndim >= 2 else Type.F32
        if name not in leave_out:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_as_llama_cpp(model: PreTrainedModel, arch: str) -> Iterator[tuple[str, np.ndarray]]:
    """By the names that the `gguf` package knows for the model's own."""
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[arch], model.config.num_hidden_layers)
    for name, value in model.state_dict().items():
        tensor = value.numpy()
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            halves = tensor.reshape(-1, 2, model.config.head_dim // 2, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        if arch == "gemma3" and name.endswith("norm.weight"):
            tensor = tensor + 1
        if name.endswith("experts.gate_up_proj"):
            home = name.removesuffix("gate_up_proj")
            gate, up = np.split(tensor, 2, axis=1)
            parts = [(f"{home}gate_proj.weight", gate), (f"{home}up_proj.weight", up)]
        elif name.endswith("experts.down_proj"):
            parts = [(f"{name}.weight", tensor)]
        else:
            parts = [(name, tensor)]
        for each, part in parts:
            found = names.get_name(each, try_suffixes=(".weight", ".bias"))
            assert found is not None, each
            yield found, np.ascontiguousarray(part)


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


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen3", {}),
        ("gemma3", {"num_hidden_layers": 7, "layer_types": None, "query_pre_attn_scalar": 8}),
        ("mixtral", {}),
        ("qwen3-moe", {}),
    ],
    ids=["qwen2", "qwen2-untied", "qwen3", "gemma3", "mixtral", "qwen3-moe"],
)
def test_a_file_of_each_architecture_gives_the_model_it_was_made_from(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    if name == "gemma3":
        # What a GGUF file cannot say of its local layers.
        rope = BY_NAME[name].changes["rope_parameters"]
        local = {"rope_type": "default", "rope_theta": 1e4}
        changes = changes | {"rope_parameters": rope | {"sliding_attention": local}}
    reference = make(name, tmp_path / "hf", **changes)
    write_gguf(tmp_path / "m.gguf", reference)
    ours = load_weights(tmp_path / "m.gguf", ONE)
    assert ours.config == open_weights(tmp_path / "hf").config
    np.testing.assert_allclose(our_logits(ours, TOKENS), torch_logits(reference, TOKENS), atol=2e-4)


def test_the_rope_freqs_tensor_is_applied(make_llama: Any, tmp_path: Path) -> None:
    reference = make_llama(rope_parameters=LLAMA3)
    plain = make_llama("plain", rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    frequencies = [m.model.rotary_emb.inv_freq.numpy() for m in (plain, reference)]
    factors = np.asarray(frequencies[0] / frequencies[1], np.float32)
    assert factors.min() < 1.01 and factors.max() > 7.9
    write_gguf(tmp_path / "m.gguf", reference, extra={"rope_freqs.weight": factors})
    ours = load_weights(tmp_path / "m.gguf", ONE)
    np.testing.assert_allclose(our_logits(ours, TOKENS), torch_logits(reference, TOKENS), atol=1e-4)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_a_table_that_is_llama_3s_scaling_is_known_as_that(
    make_llama: Any, tmp_path: Path, factor: float
) -> None:
    rope = LLAMA3 | {"rope_theta": 5e5, "factor": factor, "original_max_position_embeddings": 8192}
    reference = make_llama(rope_parameters=rope, head_dim=32)
    plain = 5e5 ** -(np.arange(0, 32, 2) / 32)
    table = np.asarray(plain / reference.model.rotary_emb.inv_freq.numpy(), np.float32)
    extra = {"rope_freqs.weight": table}
    write_gguf(tmp_path / "m.gguf", reference, extra=extra, **{"llama.rope.freq_base": 5e5})
    ours = load_weights(tmp_path / "m.gguf", ONE)
    scaling = ours.config.kinds[0].rope_scaling
    assert scaling is not None and (scaling.kind, scaling.factor) == ("llama3", factor)
    np.testing.assert_allclose(our_logits(ours, TOKENS), torch_logits(reference, TOKENS), atol=2e-4)
    # ... so that it has a form as a Hugging Face config again.
    save_hf(ours, tmp_path / "hf")
    assert load_weights(tmp_path / "hf", ONE).config == ours.config
    table[3] *= 1.001
    write_gguf(tmp_path / "m.gguf", reference, extra=extra, **{"llama.rope.freq_base": 5e5})
    other = GGUFFile(tmp_path / "m.gguf").config.kinds[0].rope_scaling
    assert other is not None and other.kind == "factors"


def test_a_table_that_scales_nothing_is_no_llama_3s(make_llama: Any, tmp_path: Path) -> None:
    reference = make_llama()
    table = np.ones(reference.config.head_dim // 2, np.float32)
    write_gguf(tmp_path / "m.gguf", reference, extra={"rope_freqs.weight": table})
    scaling = GGUFFile(tmp_path / "m.gguf").config.kinds[0].rope_scaling
    assert scaling is not None and scaling.kind == "factors"


@pytest.mark.parametrize("value", [0.0, -2.0, np.nan, np.inf])
def test_a_table_with_a_number_that_is_none_is_refused(
    make_llama: Any, tmp_path: Path, value: float
) -> None:
    reference = make_llama()
    table = np.full(reference.config.head_dim // 2, 2.0, np.float32)
    table[1] = value
    write_gguf(tmp_path / "m.gguf", reference, extra={"rope_freqs.weight": table})
    with pytest.raises(
        RequestError, match=r"rope_freqs\.weight holds a number that is not above 0"
    ):
        GGUFFile(tmp_path / "m.gguf")


@pytest.mark.parametrize("told", [{"llama.rope.scaling.type": "linear"}, {}])
def test_linear_rope_scaling_is_applied(
    make_llama: Any, tmp_path: Path, told: dict[str, Any]
) -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    reference = make_llama(rope_parameters=rope)
    told = told | {"llama.rope.scaling.factor": 4.0}
    write_gguf(tmp_path / "m.gguf", reference, **told)
    ours = load_weights(tmp_path / "m.gguf", ONE)
    assert ours.config.kinds[0].rope_scaling == RopeScaling(kind="linear", factor=4.0)
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
            (sharded.layers[0]["q"], block.self_attn.q_proj),
            (sharded.layers[0]["down"], block.mlp.down_proj),
        ]:
            matrix = theirs.weight.detach().numpy().T
            np.testing.assert_array_equal(
                np.asarray(ours.get_value())[layer].reshape(matrix.shape), matrix
            )


def test_smollm2_gives_the_logits_that_transformers_gives() -> None:
    model = load_weights(smollm2.source(), ONE)
    assert model.config.parameter_count() == 134_515_008
    tokens = np.random.default_rng(0).integers(3, 49152, (2, 24))
    ours = our_logits(model, tokens)
    np.testing.assert_allclose(ours, torch_logits(smollm2.reference(), tokens), atol=1e-3, rtol=0)


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
        ({"llama__expert_count": 8}, r"llama\.expert_used_count is missing"),
        ({"llama__block_count": 100_000_000}, r"block_count is 100000000, and the file holds 30"),
        ({"llama__expert_count": 100_000_000, "llama__expert_used_count": 2}, "is missing"),
        ({"llama__embedding_length": 25}, "asks for"),
        ({"llama__attention__key_length": 0}, r"key_length is 0, a positive integer"),
        ({"llama__attention__head_count": 2.5}, r"head_count is 2\.5, a positive integer"),
        ({"llama__context_length": "64"}, r"context_length is '64', a positive integer"),
        ({"llama__vocab_size": -1.0}, r"vocab_size is -1\.0, a positive integer"),
        ({"llama__rope__freq_base": 0.0}, r"rope\.freq_base is 0\.0, a number above 0"),
        ({"llama__rope__freq_base": float("nan")}, r"rope\.freq_base is nan"),
        ({"llama__rope__freq_base": "1e4"}, r"rope\.freq_base is '1e4'"),
        ({"llama__rope__scaling__factor": -4.0}, r"scaling\.factor is -4\.0"),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, r"epsilon is 0\.0"),
        ({"llama__attention__layer_norm_rms_epsilon": float("inf")}, "epsilon is inf"),
        ({"llama__pooling_type": 8}, r"llama\.pooling_type is 8"),
        ({"llama__attention__sliding_window": 9}, r"sliding_window is 9"),
        ({"llama__attention__head_count_kv": 4}, "not a multiple of num_kv_heads 4"),
        ({"leave_out": ("token_embd.weight",)}, r"token_embd\.weight is missing"),
        ({"leave_out": ("blk.1.attn_k.weight",)}, r"blk\.1\.attn_k\.weight is missing"),
        ({"extra": {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}}, "attn_q_norm"),
        (
            {"extra": {"rope_freqs.weight": np.ones(3, np.float32)}},
            r"rope_freqs\.weight has shape \[3\], the head size asks for \[4\]",
        ),
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
