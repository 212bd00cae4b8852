"""Keys of a config that cannot change logits are passed over by name, and others refused.

In the files of `config_files`. The reference is the family's class in `transformers`: a key by
which it computes nothing changes no logit.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.model_io.families import family_of
from ste_jax.models.config import LayerKind, ModelConfig
from ste_jax.system.errors import RequestError
from tests.cases.config_files import FILES

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
