"""Configs are understood as transformers understands them, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import LlamaConfig

from ste_jax.errors import RequestError
from ste_jax.models.config import ModelConfig, RopeScaling
from ste_jax.models.families import FAMILIES, family_of

LLAMA = FAMILIES["llama"]
# As the directories of Llama 3.1 8B Instruct (transformers 4) and of SmolLM2 have it, less what is
# the same as elsewhere.
LLAMA_31 = {
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
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}


def test_llama_31_is_read_and_has_eight_billion_parameters() -> None:
    config = LLAMA.config_from_hf(LLAMA_31, "config.json")
    assert config.head_dim == 128
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == RopeScaling(kind="llama3", factor=8.0)
    # The count that the model card's safetensors index states.
    assert config.parameter_count() == 8_030_261_248


def test_the_form_of_transformers_5_is_the_same_model() -> None:
    newer = {k: v for k, v in LLAMA_31.items() if k not in ("rope_scaling", "rope_theta")}
    newer["rope_parameters"] = LLAMA_31["rope_scaling"] | {"rope_theta": 500000.0}
    old = LLAMA.config_from_hf(LLAMA_31, "")
    assert LLAMA.config_from_hf(newer, "") == old


def test_the_defaults_are_those_of_transformers() -> None:
    needed = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
    needed += ["num_attention_heads", "rms_norm_eps", "model_type"]
    reference = LlamaConfig(**{key: LLAMA_31[key] for key in needed})
    config = LLAMA.config_from_hf({key: LLAMA_31[key] for key in needed}, "")
    assert config.num_kv_heads == reference.num_key_value_heads
    assert config.head_dim == reference.head_dim
    assert config.max_position == reference.max_position_embeddings
    assert config.rope_theta == reference.rope_parameters["rope_theta"]
    assert config.tie_embeddings == reference.tie_word_embeddings
    assert config.attention_bias == reference.attention_bias
    assert config.mlp_bias == reference.mlp_bias


@pytest.mark.parametrize(
    "changes",
    [{}, {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_scaling": None}],
    ids=["llama3", "linear", "plain"],
)
def test_what_is_written_reads_back_and_means_the_same_to_transformers(
    changes: dict[str, Any],
) -> None:
    config = LLAMA.config_from_hf(LLAMA_31 | changes, "")
    written = json.loads(json.dumps(LLAMA.config_to_hf(config)))
    assert LLAMA.config_from_hf(written, "") == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    theirs = LlamaConfig(**written).rope_parameters
    kind = config.rope_scaling.kind if config.rope_scaling else "default"
    assert (theirs["rope_type"], theirs["rope_theta"]) == (kind, 500000.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_interleaved": True}, "rope_interleaved is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale": 3}}, "mscale 3"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_attention_heads": 33}, "not a multiple of num_attention_heads"),
    ],
)
def test_what_would_change_the_computation_is_refused_by_name(
    changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        LLAMA.config_from_hf(LLAMA_31 | changes, "the/config.json")
    assert str(caught.value).startswith("the/config.json: ")


def test_what_is_off_or_says_nothing_of_the_computation_is_accepted() -> None:
    off = {"sliding_window": None, "rope_interleaved": False, "_name_or_path": "x"}
    assert LLAMA.config_from_hf(LLAMA_31 | off, "") == LLAMA.config_from_hf(LLAMA_31, "")


def test_rope_factors_cannot_be_written_as_hf() -> None:
    scaling = RopeScaling(kind="factors", factors=(1.0,) * 64)
    values = LLAMA.config_from_hf(LLAMA_31, "").to_dict() | {"rope_scaling": None}
    config = ModelConfig.from_dict(values)
    config = ModelConfig.from_dict(config.to_dict() | {"rope_scaling": scaling.__dict__})
    with pytest.raises(RequestError, match="factors"):
        LLAMA.config_to_hf(config)


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RequestError, match=r"x: architecture 'mamba'.*supported are .*llama"):
        family_of("mamba", "x")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_kv_heads": 5}, "not a multiple of num_kv_heads 5"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"hidden_size": 2.5}, "hidden_size is 2.5"),
        ({"bogus": 1}, "bogus"),
        ({"rope_scaling": {"kind": "factors", "factors": [1.0]}}, "1 rope factors"),
    ],
)
def test_a_stored_config_that_cannot_be_is_refused(changes: dict[str, Any], told: str) -> None:
    values = LLAMA.config_from_hf(LLAMA_31, "").to_dict() | changes
    with pytest.raises(RequestError, match=told):
        ModelConfig.from_dict(values)
