"""A model of random weights and a tokenizer of single letters, for tests of the decoding engine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding.engine import Engine
from ste_jax.decoding.rows import Prompt
from ste_jax.generation import Completion, Request, Sampling
from ste_jax.models.attention import causal
from ste_jax.models.config import LayerKind, ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.models.parameters import with_parameters
from ste_jax.parallel.sharding import make_mesh

EOS = (1, 2)
LETTERS = "\0\0\0abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRST"
"""Token i is letter i; the first three are special and have no text."""

KNOBS = DecodingKnobs(
    prompt_buckets=(32,),
    new_buckets=(24,),
    groups=2,
    group_size=4,
    prefill_chunk=8,
    steps_per_round=4,
    cache_tokens=256,
    dtype="float32",
)


class Letters:
    """Tokens and text of the small model."""

    eos_ids = EOS
    thinks = False

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        del continues
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(LETTERS[token] for token in ids if token > 2)

    def opened_thoughts(self, messages: Sequence[Any], arguments: Any = None) -> str:
        return ""

    def prompt_ids(self, messages: Sequence[Any], continue_text: str = "") -> list[int]:
        turns = [[0, *self.encode(message["content"])] for message in messages]
        return [token for turn in turns for token in turn] + [0, *self.encode(continue_text)]


class Signs(Letters):
    """A vocabulary of any size: token i is the i-th sign of Unicode."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in ids if token > 2)


@functools.cache
def small_model(vocab_size: int = len(LETTERS)) -> Decoder:
    """Random weights of about the size that a fresh model's have."""
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_position=64,
    )
    return random_model(config, 0)


def windowed_model() -> Decoder:
    """Layers with a window and layers without, by turns."""
    kinds = (LayerKind(window=5), LayerKind())
    config = dataclasses.replace(small_model().config, num_layers=4, kinds=kinds)
    return random_model(config, 1)


def random_model(
    config: ModelConfig, seed: int, spread: Callable[[float], float] = lambda std: std
) -> Decoder:
    """Random weights; `spread` of what a fresh model's weights have is theirs."""
    draw = np.random.default_rng(seed)
    values = {
        path: jnp.asarray(one.mean + spread(one.std) * draw.normal(size=one.shape), jnp.float32)
        for path, one in config.parameters().items()
    }
    return with_parameters(abstract_decoder(config), values)


def one_device() -> Mesh:
    """A mesh of a single device."""
    return make_mesh(MeshKnobs(), jax.devices()[:1])


def engine(model: Decoder | None = None, mesh: Any = None, **knobs: Any) -> Engine:
    model = small_model() if model is None else model
    return Engine(model, Letters(), dataclasses.replace(KNOBS, **knobs), mesh)


def prompt(seed: int, length: int, letters: int = len(LETTERS)) -> Prompt:
    draw = np.random.default_rng(seed)
    return Prompt(tuple(draw.integers(3, letters, length).tolist()))


def request(id: str, samples: Sequence[int] = (0,), key: int = 0, **sampling: Any) -> Request:
    sampling = {"max_new_tokens": 8, **sampling}
    return Request(id=id, messages=(), sampling=Sampling(**sampling), samples=samples, key=key)


def collect(completions: Iterator[Completion]) -> dict[tuple[str, int], Completion]:
    """The completions by (request, sample); each comes once."""
    found: dict[tuple[str, int], Completion] = {}
    for completion in completions:
        key = (completion.request_id, completion.sample)
        assert key not in found
        found[key] = completion
    return found


@functools.cache
def _logits(model: Decoder) -> Any:
    @jax.jit
    def run(tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[1])[None]
        hidden, _ = model(tokens, positions, causal(jnp.ones_like(tokens), positions))
        return model.logits(hidden)[0]

    return run


def full_logits(model: Decoder, tokens: Sequence[int], width: int = 64) -> np.ndarray[Any, Any]:
    """Logits [T,V] of the whole sequence computed at once, with no cache."""
    padded = np.zeros((1, width), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_logits(model)(padded))[: len(tokens)]


def full_logprobs(model: Decoder, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
    """Log-probabilities [T,V] of the next token after each."""
    logits = full_logits(model, tokens).astype(np.float64)
    highest = logits.max(-1, keepdims=True)
    return np.asarray(logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True)))


def naive_greedy(model: Decoder, tokens: Sequence[int], new: int, eos: bool) -> list[int]:
    """Greedy continuation, everything computed again for every token."""
    out: list[int] = []
    while len(out) < new:
        out.append(int(full_logits(model, [*tokens, *out])[-1].argmax()))
        if eos and out[-1] in EOS:
            break
    return out
