"""What does one layer of the decoder compute?

Shapes as in `decoder`. Activations lie in one of two ways: features last, [B,T,*features], or, in
an `unstack`ed model, features first, [*features,B,T], so that every product is a plain matrix
product from the left. Attention and the router take and give them features last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ste_jax.models.attention import Attend, Seen
from ste_jax.models.config import INPUT_AXES, LORA_A, LORA_B, SCALE, LayerKind, ModelConfig
from ste_jax.models.experts import Experts, choose, mix_experts
from ste_jax.models.rotary import Rotation, rotate

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}

Weights = dict[str, jax.Array]
"""The weights of one layer, or of a group of them stacked, by name."""


@dataclass(frozen=True)
class Layer:
    """One layer: its weights, and how they meet the activations."""

    config: ModelConfig
    weights: Weights
    dtype: Any
    """Of activations and products."""
    features_first: bool

    def __call__(
        self, x: jax.Array, kind: LayerKind, rotation: Rotation, attend: Attend, cache: Any
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The layer's output for `x`, laid as `x` is, and the keys (rotated) and values of these
        tokens, [B,T,K,d] both. `cache` is handed to `attend`."""
        mixed, keys_values = self._attention(x, kind, rotation, attend, cache)
        x = x + self._normed(mixed, "attention_post_norm")
        h = self._normed(x, "mlp_norm")
        h = self._mixture(h) if self.config.experts else self._mlp(h)
        return x + self._normed(h, "mlp_post_norm"), keys_values

    def _attention(
        self, x: jax.Array, kind: LayerKind, rotation: Rotation, attend: Attend, cache: Any
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        h = self._normed(x, "attention_norm")
        q = self._last(rotate(self._normed(self._matmul(h, "q"), "q_norm"), rotation))
        k = self._last(rotate(self._normed(self._matmul(h, "k"), "k_norm"), rotation))
        v = self._last(self._matmul(h, "v"))
        seen = Seen(
            scale=(self.config.query_scalar or self.config.head_dim) ** -0.5,
            window=kind.window,
            softcap=self.config.attention_softcap,
        )
        return self._matmul(self._laid(attend(q, k, v, cache, seen)), "o"), (k, v)

    def _mlp(self, h: jax.Array) -> jax.Array:
        activation = _ACTIVATIONS[self.config.activation]
        return self._matmul(activation(self._matmul(h, "gate")) * self._matmul(h, "up"), "down")

    def _mixture(self, h: jax.Array) -> jax.Array:
        scores = self._last(self._matmul(h, "router"))
        choice = choose(scores, self.config.experts_per_token, self.config.normalize_experts)
        given = {name: self.weights.get(f"expert_{name}") for name in Experts._fields}
        experts = Experts(**{name: one for name, one in given.items() if one is not None})
        return self._laid(mix_experts(self._last(h), choice, experts))

    def _matmul(self, inputs: jax.Array, name: str) -> jax.Array:
        """`inputs` times the matrix of that name, with its int8 scale, LoRA matrices and bias."""
        with jax.named_scope(name):  # profiles name the matrices by it
            matrix, summed = self.weights[name].astype(self.dtype), INPUT_AXES[name]
            if self.features_first:
                out = jnp.tensordot(matrix, inputs, summed)
            else:
                out = project(inputs, matrix, summed)
            if name + SCALE in self.weights:
                out = (out * self._per_output(self.weights[name + SCALE])).astype(self.dtype)
            lora = self.config.lora
            if lora and name in lora.matrices:
                narrow, wide = (
                    self.weights[name + end].astype(self.dtype) for end in (LORA_A, LORA_B)
                )
                inner = lora.scale * project(self._last(inputs), narrow, summed)
                out = out + self._laid(project(inner, wide, 1))
            bias = self.weights.get(f"{name}_bias")
            return out if bias is None else out + self._per_output(bias).astype(self.dtype)

    def _normed(self, x: jax.Array, name: str) -> jax.Array:
        """`x` normed by the weight of that name; `x` itself if the family has no such norm."""
        if name not in self.weights:
            return x
        return norm(x, self.weights[name], self.config, features_first=self.features_first)

    def _last(self, x: jax.Array) -> jax.Array:
        """`x` with features last, [B,T,*features]."""
        return jnp.moveaxis(x, (-2, -1), (0, 1)) if self.features_first else x

    def _laid(self, x: jax.Array) -> jax.Array:
        """`x`, which has features last, in the layout of this layer's activations."""
        return jnp.moveaxis(x, (0, 1), (-2, -1)) if self.features_first else x

    def _per_output(self, values: jax.Array) -> jax.Array:
        """`values` [*features], shaped to be multiplied with or added to outputs."""
        return values[..., None, None] if self.features_first else values


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(inputs: jax.Array, matrix: jax.Array, summed: int) -> jax.Array:
    """`inputs` [B,T,*in] times `matrix` [*in,*out] over the `summed` axes of `in` -> [B,T,*out].

    The gradient of the matrix is the product of inputs and cotangent in this order. JAX takes them
    the other way round, and XLA on CPU then first transposes the cotangents of the MLP's inner
    size, the largest arrays of a layer.
    """
    return jnp.tensordot(inputs, matrix, summed)


def _project_forward(
    inputs: jax.Array, matrix: jax.Array, summed: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.tensordot(inputs, matrix, summed), (inputs, matrix)


def _project_backward(
    summed: int, kept: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, matrix = kept
    outputs = range(summed, matrix.ndim)
    last = tuple(range(cotangent.ndim - len(outputs), cotangent.ndim))
    rows = tuple(range(cotangent.ndim - len(outputs)))
    return (
        jnp.tensordot(cotangent, matrix, (last, tuple(outputs))),
        jnp.tensordot(inputs, cotangent, (rows, rows)),
    )


project.defvjp(_project_forward, _project_backward)


def norm(
    x: jax.Array, weight: jax.Array, config: ModelConfig, *, features_first: bool
) -> jax.Array:
    """`rms_norm` as the family has it, over the last axis of features."""
    after = 2 if features_first else 0
    return rms_norm(x, weight, config.norm_eps, plus_one=config.norm_plus_one, after=after)


@jax.named_scope("norm")
def rms_norm(
    x: jax.Array, weight: jax.Array, eps: float, *, plus_one: bool = False, after: int = 0
) -> jax.Array:
    """Root-mean-square norm (Zhang and Sennrich 2019), in float32, over the axis that stands before
    the last `after`.

    The weight multiplies as the references do it: after the way back to the input's type, or, with
    `plus_one` (Gemma), as 1 + weight before it.
    """
    wide = x.astype(jnp.float32)
    weight = weight.reshape(-1, *(1,) * after)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1 - after, keepdims=True) + eps)
    if plus_one:
        return (wide * scale * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
    return (wide * scale).astype(x.dtype) * weight.astype(x.dtype)
