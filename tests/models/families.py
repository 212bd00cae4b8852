"""Random tiny models of every family, made by transformers, which is the reference.

Awkward on purpose: heads * head_dim is not the hidden size, queries are grouped in several ratios,
the vocabulary is odd, windows are shorter than what is read, and the number of layers is no
multiple of the cycle of their kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
)

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    # Left to itself, transformers takes id 0 for padding and trains no embedding of it.
    "pad_token_id": None,
}
WINDOW = 7
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
_GEMMA = {
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "query_pre_attn_scalar": 10,
    "sliding_window": WINDOW,
}
_SOFTCAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Case:
    """One model: a family and what is particular to it."""

    name: str
    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    variant: bool = False
    """Whether another case stands for the family in the slower tests, which take one of each."""

    @property
    def experts(self) -> bool:
        """Whether it is a mixture."""
        return any(name.endswith("experts") for name in self.changes)


CASES = (
    Case("llama", "llama", variant=True),
    Case(
        "llama-tied-mqa",
        "llama",
        {"tie_word_embeddings": True, "num_key_value_heads": 1},
        variant=True,
    ),
    Case("llama-biases", "llama", {"attention_bias": True, "mlp_bias": True}, variant=True),
    Case("llama-no-gqa", "llama", {"num_key_value_heads": 6, "vocab_size": 33}, variant=True),
    Case("llama-linear", "llama", {"rope_parameters": _LINEAR}, variant=True),
    Case("llama-3.1", "llama", {"rope_parameters": LLAMA3}),
    Case("mistral", "mistral", {"sliding_window": None}, variant=True),
    Case("mistral-window", "mistral", {"sliding_window": WINDOW}),
    Case("qwen2", "qwen2", {"tie_word_embeddings": True}),
    Case(
        "qwen2-window",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        variant=True,
    ),
    Case("qwen3", "qwen3"),
    Case("gemma2", "gemma2", _GEMMA | _SOFTCAPS),
    Case(
        "gemma3",
        "gemma3_text",
        _GEMMA
        | {
            "num_key_value_heads": 1,
            "layer_types": [_LOCAL, _GLOBAL, _LOCAL, _GLOBAL, _LOCAL],
            "rope_parameters": {
                _LOCAL: {"rope_type": "default", "rope_theta": 100.0},
                _GLOBAL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
            },
        },
    ),
    Case("mixtral", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Case(
        "qwen3-moe",
        "qwen3_moe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 12,
            "norm_topk_prob": True,
        },
    ),
)
BY_NAME = {case.name: case for case in CASES}
FAMILIES = tuple(case.name for case in CASES if not case.variant)
"""The names of one case of each family, the one with the most in it."""
SEEING = "gemma3"
"""The `model_type` of `make_seeing`."""


def make(
    case: Case | str, directory: Path, dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """Writes a random model of that case to `directory` and returns it."""
    case = BY_NAME[case] if isinstance(case, str) else case
    config = AutoConfig.for_model(case.model_type, **(SIZES | case.changes | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    return randomized(model, directory, dtype)


def make_seeing(directory: Path) -> PreTrainedModel:
    """Writes a random Gemma 3 with its eyes."""
    config = AutoConfig.for_model(
        SEEING,
        text_config=SIZES | BY_NAME["gemma3"].changes,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    return randomized(Gemma3ForConditionalGeneration(config).eval(), directory, torch.float32)


def randomized(model: Any, directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Moves every parameter of a fresh model by chance, and writes it to `directory`."""
    with torch.no_grad():
        for parameter in model.parameters():
            # The library starts norms at one and biases at zero, where mistakes do not show.
            parameter.add_(0.2 * torch.randn_like(parameter))
    model = model.to(dtype)
    model.save_pretrained(directory)
    return model
