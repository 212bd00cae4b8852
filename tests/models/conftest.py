"""Random tiny Llama models, made by transformers, which is the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

# Awkward on purpose: heads * head_dim != hidden, grouped queries, an odd vocabulary, no power of
# two.
AWKWARD = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}

MakeLlama = Callable[..., LlamaForCausalLM]


@pytest.fixture
def make_llama(tmp_path: Path) -> MakeLlama:
    """`make_llama(name="hf", seed=0, **config)` writes a random model to `tmp_path / name`."""

    def make(
        name: str = "hf", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
    ) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**AWKWARD, **changes})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # The library starts norms at one and biases at zero, where mistakes do not show.
                parameter.add_(0.2 * torch.randn_like(parameter))
        model = model.to(dtype)
        model.save_pretrained(tmp_path / name)
        return model

    return make
