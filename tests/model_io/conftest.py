"""Random tiny Llama models, made by transformers, which is the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.models import families

MakeLlama = Callable[..., PreTrainedModel]


@pytest.fixture
def make_llama(tmp_path: Path) -> MakeLlama:
    """`make_llama(name="hf", **config)` writes a random model to `tmp_path / name`."""

    def make(
        name: str = "hf", dtype: torch.dtype = torch.float32, **changes: Any
    ) -> PreTrainedModel:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**{**families.SIZES, **changes})).eval()
        return families.randomized(model, tmp_path / name, dtype)

    return make
