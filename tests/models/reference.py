"""Logits of the reference and of ours, for the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers import PreTrainedModel

from ste_jax.models.attention import causal
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder

QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options for programs that run once: half the time to compile, more to run."""


def torch_logits(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """[B,T,V] of full rows."""
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens, np.int64))).logits.float().numpy()


def greedy(
    model: PreTrainedModel, tokens: Sequence[int], new_tokens: int, eos_ids: Sequence[int]
) -> list[int]:
    """What `transformers` generates after `tokens` at temperature 0, an end among it."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        drawn = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=list(eos_ids),
            pad_token_id=0,
        )
    return drawn[0, ids.shape[1] :].tolist()


@partial(jax.jit, static_argnames=("graph", "remat"), compiler_options=QUICK)
def _run(
    graph: Any,
    state: Any,
    tokens: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
    remat: bool,
) -> jax.Array:
    model = nnx.merge(graph, state)
    attend = causal(segments, positions)
    hidden, _ = model(tokens, positions, attend, remat=remat)
    return model.logits(hidden)


def packed_logits(
    model: Decoder,
    tokens: np.ndarray,
    segments: np.ndarray,
    positions: np.ndarray,
    remat: bool = False,
) -> np.ndarray:
    """[B,T,V] of packed rows, by a jitted function of the model's state."""
    graph, state = nnx.split(model)
    tokens = np.asarray(tokens, np.int32)
    return np.asarray(_run(graph, state, tokens, segments, positions, remat))


def our_logits(model: Decoder, tokens: np.ndarray, **how: bool) -> np.ndarray:
    """[B,T,V] of full rows."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return packed_logits(model, tokens, np.ones_like(positions), positions, **how)


def random_decoder(config: ModelConfig, seed: int = 0, **dtypes: Any) -> Decoder:
    """A decoder of random weights, drawn by numpy: there is nothing to compile."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(abstract_decoder(config, **dtypes))

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return nnx.merge(graph, jax.tree.map(draw, state))
