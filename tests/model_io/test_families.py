"""Configs are understood as transformers understands them, or refused by name."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig

from ste_jax.model_io.families import FAMILIES, family_of
from ste_jax.models.config import LayerKind, ModelConfig, RopeScaling
from ste_jax.system.errors import RequestError
from tests.cases.config_files import FILES
from tests.models.families import BY_NAME, SEEING
from tests.models.families import FAMILIES as tested

LLAMA = FAMILIES["llama"]
LLAMA_31 = FILES["Llama-3.1-8B-Instruct"]


def test_every_family_is_tested_against_transformers() -> None:
    """By one `Case` that is no variant; the one that sees has none, since a test of its own makes
    it."""
    assert sorted(BY_NAME[name].model_type for name in tested) == sorted(FAMILIES.keys() - {SEEING})


NEEDED = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
    "model_type",
]


def test_llama_31_is_read_and_has_eight_billion_parameters() -> None:
    config = LLAMA.read_config(LLAMA_31, "config.json")
    assert config.head_dim == 128
    (kind,) = config.kinds
    assert kind.rope_theta == 500000.0
    assert kind.rope_scaling == RopeScaling(kind="llama3", factor=8.0)
    # The count that the model card's safetensors index states.
    assert config.parameter_count() == 8_030_261_248


def test_the_form_of_transformers_5_is_the_same_model() -> None:
    newer = {k: v for k, v in LLAMA_31.items() if k not in ("rope_scaling", "rope_theta")}
    newer["rope_parameters"] = LLAMA_31["rope_scaling"] | {"rope_theta": 500000.0}
    old = LLAMA.read_config(LLAMA_31, "")
    assert LLAMA.read_config(newer, "") == old


def test_the_defaults_are_those_of_transformers() -> None:
    values = {key: LLAMA_31[key] for key in NEEDED}
    reference = LlamaConfig(**values)
    config = LLAMA.read_config(values, "")
    assert config.num_kv_heads == reference.num_key_value_heads
    assert config.head_dim == reference.head_dim
    assert config.max_position == reference.max_position_embeddings
    assert config.kinds[0].rope_theta == reference.rope_parameters["rope_theta"]
    assert config.tie_embeddings == reference.tie_word_embeddings
    assert config.qkv_bias == config.o_bias == reference.attention_bias
    assert config.mlp_bias == reference.mlp_bias


@pytest.mark.parametrize(
    "changes",
    [{}, {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_scaling": None}],
    ids=["llama3", "linear", "plain"],
)
def test_what_is_written_reads_back_and_means_the_same_to_transformers(
    changes: dict[str, Any],
) -> None:
    config = LLAMA.read_config(LLAMA_31 | changes, "")
    written = json.loads(json.dumps(LLAMA.config_to_hf(config)))
    assert LLAMA.read_config(written, "") == config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    theirs = LlamaConfig(**written).rope_parameters
    scaling = config.kinds[0].rope_scaling
    kind = scaling.kind if scaling else "default"
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
        (
            {"rope_scaling": None, "rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor 0.5",
        ),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_attention_heads": 33}, "not a multiple of num_attention_heads"),
        ({"num_attention_heads": 32.0}, "num_attention_heads is 32.0, a positive integer"),
        ({"num_key_value_heads": 3}, "num_attention_heads 32 is no multiple of .*heads 3"),
        ({"head_dim": 7}, "head_dim is 7, odd"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, a positive integer"),
        ({"intermediate_size": "14336"}, "intermediate_size is '14336', a positive integer"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', a number above 0"),
        ({"rope_theta": -1}, "rope_theta is -1, a number above 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, "'linear': factor is None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "'linear': factor is 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": math.inf}}, "'linear': factor is inf"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', an object"),
        ({"rope_parameters": 3}, "rope_parameters is 3, an object"),
        (
            {"rope_scaling": LLAMA_31["rope_scaling"] | {"high_freq_factor": 1.0}},
            "high_freq_factor is not the higher one",
        ),
        (
            {"rope_scaling": LLAMA_31["rope_scaling"] | {"original_max_position_embeddings": "8k"}},
            "original_max_position_embeddings is '8k', a positive integer",
        ),
    ],
)
def test_what_would_change_the_computation_is_refused_by_name(
    changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        LLAMA.read_config(LLAMA_31 | changes, "the/config.json")
    assert str(caught.value).startswith("the/config.json: ")


# What is particular to the others, as released directories have it.
GEMMA_3_27B = {
    "model_type": "gemma3",
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}
GEMMA_2_2B = {
    "model_type": "gemma2",
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "cache_implementation": "hybrid",
    "head_dim": 256,
    "vocab_size": 256000,
}
QWEN2 = {**{k: LLAMA_31[k] for k in NEEDED}, "model_type": "qwen2", "max_window_layers": 28}
QWEN3_MOE = {
    **{k: LLAMA_31[k] for k in NEEDED},
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "num_experts": 128,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "max_window_layers": 48,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "use_sliding_window": False,
}
MIXTRAL = {**{k: LLAMA_31[k] for k in NEEDED}, "model_type": "mixtral", "num_local_experts": 8}


def read(values: dict[str, Any]) -> ModelConfig:
    return family_of(values["model_type"], "").read_config(values, "the/config.json")


def test_a_gemma_3_that_sees_is_read_by_its_text_and_by_the_defaults_of_transformers() -> None:
    config = read(GEMMA_3_27B)
    assert (config.model_type, config.vocab_size, config.norm_eps) == ("gemma3_text", 262208, 1e-6)
    local, whole = config.kinds[0], config.kinds[5]
    assert config.kinds == (*[local] * 5, whole)
    assert local == LayerKind(window=1024, rope_theta=1e4)
    scaling = RopeScaling(kind="linear", factor=8.0)
    assert whole == LayerKind(rope_theta=1e6, rope_scaling=scaling)
    assert [len(group) for group in config.groups] == [10] * 6 + [1, 1]
    assert config.query_scalar == 168 and config.qk_norm and config.tie_embeddings


def test_gemma_2_caps_unless_told_otherwise() -> None:
    assert read(GEMMA_2_2B).final_softcap == 30.0
    assert read(GEMMA_2_2B).attention_softcap == 50.0
    assert read(GEMMA_2_2B | {"final_logit_softcapping": None}).final_softcap is None
    assert read(GEMMA_2_2B).kinds == (LayerKind(window=4096), LayerKind())


def test_a_window_counts_only_where_it_is_used() -> None:
    assert read(QWEN2 | {"sliding_window": 131072}).kinds == (LayerKind(rope_theta=10000.0),)
    used = {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 30}
    config = read(QWEN2 | used)
    assert [kind.window for kind in config.kinds] == [None] * 30 + [64] * 2
    assert len(config.groups) == 32, "no cycle: every layer is a group of its own"


def test_what_is_missing_is_what_transformers_takes_and_null_is_null() -> None:
    mistral = {**{k: LLAMA_31[k] for k in NEEDED}, "model_type": "mistral"}
    reference = AutoConfig.for_model(**mistral)
    config = read(mistral)
    assert config.kinds[0].window == reference.sliding_window == 4096
    assert config.max_position == reference.max_position_embeddings
    assert config.num_kv_heads == reference.num_key_value_heads
    assert read(mistral | {"sliding_window": None}).kinds[0].window is None
    assert read(mistral | {"num_key_value_heads": None}).num_kv_heads == 32
    assert read(QWEN2).max_position == AutoConfig.for_model(**QWEN2).max_position_embeddings
    both = {"rope_theta": 500.0, "rope_parameters": {"rope_theta": 500.0}}
    assert read(mistral | both).kinds[0].rope_theta == 500.0


@pytest.mark.parametrize(
    ("values", "changes", "told"),
    [
        (QWEN2, {"layer_types": ["sliding_attention"] * 32}, "sliding_attention is not known"),
        (QWEN2, {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, "rope_theta is 5.0"),
        (
            QWEN2,
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 3.0}},
            "rope_scaling is .* rope_parameters says otherwise",
        ),
        (GEMMA_2_2B, {"sliding_window": None}, "sliding_window is None"),
        (GEMMA_2_2B, {"sliding_window": 4096.5}, "sliding_window is 4096.5, a positive integer"),
        (GEMMA_2_2B, {"attn_logit_softcapping": "x"}, "attn_logit_softcapping is 'x', a number"),
        (
            GEMMA_3_27B,
            {"text_config": GEMMA_3_27B["text_config"] | {"rope_local_base_freq": 0}},
            "rope_local_base_freq is 0, a number",
        ),
        (GEMMA_2_2B, {"num_attention_heads": 0}, "num_attention_heads is 0, a positive"),
        (GEMMA_3_27B, {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        (GEMMA_2_2B, {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (GEMMA_2_2B, {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        (GEMMA_2_2B, {"layer_types": ["chunked_attention"] * 26}, "chunked_attention is not known"),
        (GEMMA_2_2B, {"layer_types": ["full_attention"]}, "there are 26 layers"),
        (GEMMA_3_27B, {"text_config": {"altup_num_inputs": 4}}, "text_config: altup_num_inputs"),
        (GEMMA_3_27B, {"text_config": 3}, "the/config.json: "),
        (GEMMA_3_27B, {"text_config": None}, "text_config is missing"),
        (QWEN2, {"qk_layernorm": True}, "qk_layernorm is True"),
        (QWEN3_MOE, {"mlp_only_layers": [3]}, r"mlp_only_layers is \[3\]"),
        (QWEN3_MOE, {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        (QWEN3_MOE, {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size"),
        (MIXTRAL, {"num_experts_per_tok": 9}, "experts_per_token is 9, of 8 experts"),
        (MIXTRAL, {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ],
)
def test_each_family_refuses_by_name_what_it_does_not_know(
    values: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    read(values)
    with pytest.raises(RequestError, match=told) as caught:
        read(values | changes)
    assert str(caught.value).startswith("the/config.json: ")


def test_what_is_off_or_says_nothing_of_the_computation_is_accepted() -> None:
    off = {"sliding_window": None, "rope_interleaved": False, "_name_or_path": "x"}
    assert LLAMA.read_config(LLAMA_31 | off, "") == LLAMA.read_config(LLAMA_31, "")


def test_rope_factors_cannot_be_written_as_hf() -> None:
    scaling = {"kind": "factors", "factors": [1.0] * 64}
    values = LLAMA.read_config(LLAMA_31, "").to_dict() | {"kinds": [{"rope_scaling": scaling}]}
    config = ModelConfig.from_dict(values)
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
        ({"kinds": [{"rope_scaling": {"kind": "factors", "factors": [1.0]}}]}, "1 rope factors"),
        ({"kinds": []}, "kinds is empty"),
        ({"kinds": [{"window": 0}]}, "window is 0"),
        ({"kinds": [{"colour": 0}]}, "colour"),
        ({"experts": 4, "experts_per_token": 5}, "experts_per_token is 5, of 4 experts"),
    ],
)
def test_a_stored_config_that_cannot_be_is_refused(changes: dict[str, Any], told: str) -> None:
    values = LLAMA.read_config(LLAMA_31, "").to_dict() | changes
    with pytest.raises(RequestError, match=told):
        ModelConfig.from_dict(values)
