"""Keys of a config that cannot change logits are passed over by name, and others refused.

Whole config files, of the released models and of what trainers write over them. The reference is
the family's class in `transformers`: a key by which it computes nothing changes no logit.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.errors import RequestError
from ste_jax.model_io.families import family_of
from ste_jax.models.config import LayerKind, ModelConfig

_LLAMA3_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_QWEN = {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}


def _gemma2(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 16,
        "num_hidden_layers": 42,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "sliding_window_size": 4096,
        "torch_dtype": "float32",
        "transformers_version": "4.42.0.dev0",
        "use_cache": True,
        "vocab_size": 256000,
        **changes,
    }


FILES: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": _LLAMA3_ROPE,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": 128256,
    },
    # As Vicuna 1.5 16K has it.
    "a chat model over Llama 2": {
        "_name_or_path": "vicuna-7b-v1.5-16k",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "max_sequence_length": 16384,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 4.0, "type": "linear"},
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "vocab_size": 32000,
    },
    "SmolLM2-135M-Instruct": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
        "transformers_version": "4.42.3",
        "use_cache": True,
        "vocab_size": 49152,
    },
    "Mistral-7B-Instruct-v0.1": {**_MISTRAL, "model_type": "mistral", "sliding_window": 4096},
    "a fine-tune of Mistral by unsloth": {
        **_MISTRAL,
        "model_type": "mistral",
        "_name_or_path": "unsloth/mistral-7b-instruct-v0.3-bnb-4bit",
        "_attn_implementation_autoset": True,
        "head_dim": 128,
        "pad_token_id": 770,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "unsloth_fixed": True,
        "unsloth_version": "2024.12.4",
        "vocab_size": 32768,
    },
    "Mixtral-8x7B-Instruct-v0.1": {
        **_MISTRAL,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "output_router_logits": False,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
    },
    "Qwen2.5-7B-Instruct": {
        **_QWEN,
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "sliding_window": 131072,
    },
    "DeepSeek-R1-Distill-Qwen-7B": {
        **_QWEN,
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151646,
        "eos_token_id": 151643,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rope_theta": 10000,
        "sliding_window": 4096,
        "use_mrope": False,
    },
    "Qwen3-8B": {
        **_QWEN,
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rope_scaling": None,
        "sliding_window": None,
        "vocab_size": 151936,
    },
    "Qwen3-30B-A3B": {
        **_QWEN,
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "output_router_logits": False,
        "rope_scaling": None,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "vocab_size": 151936,
    },
    "gemma-2-9b-it": _gemma2(),
    "gemma-2-27b-it": _gemma2(
        _attn_implementation="eager",
        head_dim=128,
        hidden_size=4608,
        intermediate_size=36864,
        num_attention_heads=32,
        num_hidden_layers=46,
        num_key_value_heads=16,
        query_pre_attn_scalar=144,
        use_cache=True,
    ),
    "gemma-3-1b-it": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "initializer_range": 0.02,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "use_cache": True,
        "vocab_size": 262144,
    },
    "gemma-3-4b-it": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    },
}

WITHOUT_EFFECT: dict[str, Any] = {
    "_attn_implementation_autoset": True,
    "_attn_implementation": "flash_attention_2",
    "attn_implementation": "sdpa",
    "_flash_attn_2_enabled": True,
    "use_flash_attention_2": True,
    "_name_or_path": "somebody/base",
    "_commit_hash": "0123abc",
    "base_model_name_or_path": "somebody/base",
    "gradient_checkpointing": True,
    "neftune_noise_alpha": 5,
    "attention_dropout": 0.1,
    "hidden_dropout": 0.1,
    "embd_pdrop": 0.1,
    "router_aux_loss_coef": 0.01,
    "max_sequence_length": 2048,
    "model_max_length": 4096,
    "seq_length": 2048,
    "tokenizer_padding_side": "right",
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "num_labels": 2,
    "problem_type": "single_label_classification",
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 50,
    "num_beams": 1,
    "repetition_penalty": 1.05,
    "max_length": 4096,
    "return_dict_in_generate": True,
    "keys_to_ignore_at_inference": ["past_key_values"],
    "unsloth_version": "2025.3",
    "partial_rotary_factor": 1.0,
    "max_window_layers": 4,
    "is_decoder": True,
    "use_mrope": False,
    "pruned_heads": {},
}

WITH_EFFECT: dict[str, Any] = {
    "quantization_config": {"bits": 4, "quant_method": "gptq"},
    "auto_map": {"AutoModelForCausalLM": "modeling.Own"},
    "rope_interleaved": True,
    "partial_rotary_factor": 0.5,
    "is_encoder_decoder": True,
    "add_cross_attention": True,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "clip_qkv": 8.0,
    "use_mrope": True,
    "per_layer_config": {"0": {"head_dim": 4}},
}


def read(values: dict[str, Any]) -> ModelConfig:
    return family_of(values["model_type"], "config.json").read_config(values, "config.json")


def with_key(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The file with one more key, in the text model's part if there is one."""
    if "text_config" in values:
        return {**values, "text_config": {**values["text_config"], key: value}}
    return {**values, key: value}


@pytest.mark.parametrize("name", FILES)
def test_keys_without_effect_are_passed_over_in_every_family(name: str) -> None:
    plain = read(FILES[name])
    for key, value in WITHOUT_EFFECT.items():
        assert read(with_key(FILES[name], key, value)) == plain, key


@pytest.mark.parametrize("name", FILES)
def test_keys_with_an_effect_are_refused_by_name_in_every_family(name: str) -> None:
    for key, value in WITH_EFFECT.items():
        with pytest.raises(RequestError, match=rf"config\.json.*: {key} is"):
            read(with_key(FILES[name], key, value))


def test_gemma_2_is_what_was_published() -> None:
    nine, big = read(FILES["gemma-2-9b-it"]), read(FILES["gemma-2-27b-it"])
    assert nine.parameter_count() == 9_241_705_984
    assert big.parameter_count() == 27_227_128_320
    assert (nine.query_scalar, big.query_scalar) == (256.0, 144.0)
    assert nine.kinds == big.kinds == (LayerKind(window=4096), LayerKind())
    assert (nine.attention_softcap, nine.final_softcap) == (50.0, 30.0)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gemma-2-9b-it", "sliding_window_size", 2048),
        ("gemma-2-9b-it", "hidden_activation", "gelu"),
        ("Llama-3.1-8B-Instruct", "layer_types", ["sliding_attention"] * 32),
        ("Llama-3.1-8B-Instruct", "layer_types", ["full_attention"] * 31),
        ("Llama-3.1-8B-Instruct", "layer_types", "full_attention"),
        ("Llama-3.1-8B-Instruct", "original_max_position_embeddings", 4096),
        ("Llama-3.1-8B-Instruct", "attention_bias", "false"),
        ("Llama-3.1-8B-Instruct", "tie_word_embeddings", 1),
        ("Mistral-7B-Instruct-v0.1", "layer_types", ["full_attention"] * 32),
        ("Qwen2.5-7B-Instruct", "use_sliding_window", "no"),
        ("Qwen3-8B", "layer_types", [["full_attention"]] * 36),
        ("gemma-3-1b-it", "rope_parameters", {"rope_type": "linear", "factor": 8.0}),
        ("gemma-3-4b-it", "hidden_size", float("nan")),
    ],
)
def test_a_key_that_says_otherwise_is_refused_by_name(name: str, key: str, value: Any) -> None:
    with pytest.raises(RequestError, match=key):
        read(with_key(FILES[name], key, value))


def test_keys_that_repeat_what_is_known_are_right() -> None:
    llama, mistral = FILES["Llama-3.1-8B-Instruct"], FILES["Mistral-7B-Instruct-v0.1"]
    assert read({**llama, "layer_types": ["full_attention"] * 32}) == read(llama)
    assert read({**mistral, "layer_types": ["sliding_attention"] * 32}) == read(mistral)
    assert read({**llama, "original_max_position_embeddings": 8192}) == read(llama)
    assert read({**mistral, "original_max_position_embeddings": 8192}) == read(mistral)
    first = {**FILES["gemma-2-9b-it"], "hidden_act": "gelu"}
    assert read(first) == read(FILES["gemma-2-9b-it"])


STRANGE = [None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**400, 0.0, -1.0, 0.5, float("nan")]
STRANGE += [float("inf"), 1e300, "", "4", "full_attention", [], [1], [[1]], {}, {"a": 1}]


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_changed_config_is_a_model_or_a_sentence(data: st.DataObject) -> None:
    values = FILES[data.draw(st.sampled_from(sorted(FILES)))]
    inner = values.get("text_config", values)
    key = data.draw(st.sampled_from(sorted(inner)))
    value = data.draw(st.sampled_from(STRANGE))
    if isinstance(inner[key], dict) and data.draw(st.booleans()):
        value = {**inner[key], data.draw(st.sampled_from(sorted(inner[key]))): value}
    # More layers than a file has tensors are refused by whoever has the file.
    if key == "num_hidden_layers" and value in (2**31, 2**63):
        return
    try:
        config = read(with_key(values, key, value))
    except RequestError as error:
        assert str(error).startswith("config.json: ") and "\n" not in str(error)
        return
    for one in config.parameters().values():
        assert all(isinstance(size, int) and size > 0 for size in one.shape)
    thetas = [kind.rope_theta for kind in config.kinds]
    numbers = [config.norm_eps, config.query_scalar, config.attention_softcap, *thetas]
    for number in (*numbers, config.final_softcap):
        assert number is None or 0 < number < math.inf
