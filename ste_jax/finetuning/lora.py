"""How are small matrices trained in the place of large ones, and merged with them afterwards?

This is LoRA (Hu et al. 2021, arXiv 2106.09685). The large matrices stay as they are, so they have
no gradients and no moments; beside each there are two small ones, whose product is added to it.
What is measured and kept is the sum: an ordinary model.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ste_jax.config.schema import LoraKnobs
from ste_jax.models.config import INPUT_AXES, LORA_A, LORA_B, Lora, ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.models.parameters import parameters_of, with_parameters
from ste_jax.parallel.sharding import parameter_sharding
from ste_jax.system.errors import RequestError


def is_trained(config: ModelConfig, path: str) -> bool:
    """Whether a parameter is trained: with LoRA the small matrices alone, without it all."""
    return config.lora is None or path.endswith((LORA_A, LORA_B))


def with_small_matrices(model: Decoder, knobs: LoraKnobs, seed: int, mesh: Mesh) -> Decoder:
    """The same model with small matrices that add nothing yet, drawn by `seed`.

    Raises:
      RequestError: a knob names no matrix, or the rank or alpha cannot be.
    """
    check_lora(knobs)
    there = {path.rpartition(".")[2] for path in model.config.parameters()}
    matrices = tuple(name for name in knobs.matrices if name in there)
    if not matrices:
        raise RequestError(
            f"finetune.lora.matrices: the model has none of {', '.join(knobs.matrices)} (a "
            "mixture's experts get no small ones), so nothing would be trained"
        )
    lora = Lora(rank=knobs.rank, alpha=knobs.alpha, matrices=matrices)
    config = dataclasses.replace(model.config, lora=lora)
    values = parameters_of(model)
    kind = values["embed"].dtype
    for number, (path, declared) in enumerate(config.parameters().items()):
        if is_trained(config, path):
            drawn = np.zeros(declared.shape, np.float32)
            if declared.std:
                np.random.default_rng([seed, number]).standard_normal(out=drawn, dtype=np.float32)
                drawn *= declared.std
            values[path] = jax.make_array_from_callback(
                declared.shape,
                parameter_sharding(declared.shape, declared.axes, mesh),
                drawn.astype(kind).__getitem__,
            )
    return with_parameters(abstract_decoder(config, dtype=model.dtype, param_dtype=kind), values)


def merged(model: Decoder) -> Decoder:
    """An ordinary model that computes the same; a model without small matrices is returned as it
    is."""
    lora = model.config.lora
    if lora is None:
        return model
    values = parameters_of(model)
    for name in lora.matrices:
        for group in range(len(model.config.groups)):
            path = f"layers.{group}.{name}"
            values[path] = _add(
                values[path], values.pop(path + LORA_A), values.pop(path + LORA_B), lora.scale
            )
    config = dataclasses.replace(model.config, lora=None)
    kind = values["embed"].dtype
    return with_parameters(abstract_decoder(config, dtype=model.dtype, param_dtype=kind), values)


@jax.jit
def _add(matrix: jax.Array, narrow: jax.Array, wide: jax.Array, scale: float) -> jax.Array:
    """[L,*in,*out] + scale * [L,*in,r] [L,r,*out], in float32."""
    narrow, wide = narrow.astype(jnp.float32), wide.astype(jnp.float32)
    product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(narrow, wide)
    return (matrix.astype(jnp.float32) + scale * product).astype(matrix.dtype)


def check_lora(knobs: LoraKnobs) -> None:
    """Raises `RequestError` for LoRA knobs that fit no model."""
    if not knobs.rank:
        return
    unknown = [name for name in knobs.matrices if name not in INPUT_AXES or name == "router"]
    if unknown:
        known = ", ".join(name for name in INPUT_AXES if name != "router")
        raise RequestError(
            f"finetune.lora.matrices: {unknown[0]!r} is no matrix; known are {known}"
        )
    if knobs.rank < 1 or knobs.alpha <= 0 or not knobs.matrices:
        raise RequestError(
            "finetune.lora: rank is a positive number (0 switches it off), alpha is above 0, and "
            "at least one matrix is named"
        )
