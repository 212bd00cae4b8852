"""Which work is timed, and of which weights?

All engines get the same token ids and the same weights: random ones of a shape, or a real model's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.models.hf import save_hf

LLAMA_135M = ModelConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_position=8192,
    tie_embeddings=True,
)
"""The shape of SmolLM2-135M (its model card)."""

LLAMA_8B = ModelConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=8192,
)
"""The shape of Llama 3.1 8B (its model card)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Prompts, and what is drawn of each."""

    prompts: tuple[tuple[int, ...], ...]
    samples: int
    new_tokens: int
    temperature: float = 0.7
    top_p: float = 0.9
    eos_ids: tuple[int, ...] = ()
    """Tokens that end a sample; none: all have `new_tokens`."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts))

    def warm_up(self) -> Workload:
        """Work of the same shapes, of other tokens and few of them."""
        turned = tuple(prompt[::-1] for prompt in self.prompts)
        return dataclasses.replace(self, prompts=turned, new_tokens=min(self.new_tokens, 8))

    def greedy(self) -> Workload:
        """The likeliest tokens, one sample of each prompt."""
        return dataclasses.replace(self, samples=1, temperature=0.0, top_p=1.0)


def random_prompts(count: int, tokens: int, vocab: int) -> tuple[tuple[int, ...], ...]:
    """Prompts of random tokens."""
    draw = np.random.default_rng(1)
    return tuple(tuple(draw.integers(100, vocab, tokens).tolist()) for _ in range(count))


def workload_a() -> Workload:
    """Four judge prompts of which many samples are wanted."""
    prompts = random_prompts(4, 512, LLAMA_135M.vocab_size)
    return Workload(prompts=prompts, samples=16, new_tokens=128)


def workload_b() -> Workload:
    """Longer prompts, fewer and shorter samples."""
    prompts = random_prompts(8, 1024, LLAMA_135M.vocab_size)
    return Workload(prompts=prompts, samples=8, new_tokens=64)


def workload_g() -> Workload:
    """What one accelerator is given."""
    prompts = random_prompts(8, 1024, LLAMA_8B.vocab_size)
    return Workload(prompts=prompts, samples=16, new_tokens=256)


def write_random(directory: Path, config: ModelConfig) -> None:
    """Random float32 weights of `config` as a Hugging Face directory (no tokenizer)."""
    directory.mkdir(parents=True)
    save_hf(Decoder(config, rngs=nnx.Rngs(0), param_dtype=jnp.float32), directory)


@dataclass(kw_only=True)
class Timed:
    """What one engine did."""

    name: str
    seconds: float
    new_tokens: int
    ids: list[list[list[int]]]
    """New tokens of each prompt's samples."""
    told: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What else there is to say."""

    @property
    def speed(self) -> float:
        """New tokens per second of the whole run, prompts included."""
        return self.new_tokens / self.seconds
