"""What does the model compute?

Shapes: `B` batch, `T` time, `D` model, `H` query heads, `K` kv heads, `d` head size, `F` the MLP's
inner size, `V` vocabulary, `L` layers.

One decoder for all families. Its parameters are those that `ModelConfig.parameters` declares, those
of the layers stacked along a first axis `L` and scanned, so that a program's size does not grow
with the depth. Norms, rotary embedding, softmax and logits are float32; matmuls run in `dtype`.

The model neither holds nor writes a cache. It is given an `attend` function and, per layer,
whatever that function wants to see (`cache`), and returns the keys and values of the new tokens.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ste_jax.models.attention import Attend
from ste_jax.models.config import ModelConfig, RopeScaling
from ste_jax.sharding import constrain

_INPUT_AXES = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
"""How many axes of a layer's matrix are of its input; they stand before those of its output."""

Weights = dict[str, jax.Array]
"""The weights of one layer, or of all of them stacked, by their names less `layers.`."""

Frequencies = np.ndarray[Any, Any]


class Turn(NamedTuple):
    """The rotary embedding's rotation at each position, each [B,T,1,d/2] in float32."""

    cos: jax.Array
    sin: jax.Array


class Decoder(nnx.Module):
    """A Llama-architecture decoder with stacked layers.

    `nnx.split(model)` gives a graph definition and the state to jit pure functions of. Every
    parameter carries its logical axes as the metadata `axes`.
    """

    # What `ModelConfig.parameters` declares; `unembed` is there when the embeddings are not tied.
    embed: nnx.Param[Any]
    final_norm: nnx.Param[Any]
    unembed: nnx.Param[Any]
    layers: Any

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
    ) -> None:
        self.config = config
        self.dtype = jnp.dtype(dtype)
        layers: dict[str, nnx.Param[Any]] = {}
        for name, declared in config.parameters().items():
            value = jnp.full(declared.shape, declared.mean, param_dtype)
            if declared.std:
                noise = jax.random.normal(rngs.params(), declared.shape, jnp.float32)
                value = value + (declared.std * noise).astype(param_dtype)
            parameter = nnx.Param(value, axes=declared.axes)
            if name.startswith("layers."):
                layers[name.removeprefix("layers.")] = parameter
            else:
                setattr(self, name, parameter)
        self.layers = nnx.Dict(layers)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        attend: Attend,
        cache: Any = None,
        *,
        remat: bool = False,
        unroll: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Runs the layers on `tokens` [B,T] at `positions` [B,T].

        Args:
          attend: how a layer's queries see keys; see `ste_jax.models.attention`.
          cache: a pytree whose leaves have a first axis `L`, handed to `attend` layer by layer and
            never written; or a list with one pytree per layer, when the layers run as a Python
            loop.
          remat: compute each layer again in the backward pass instead of keeping its insides.
          unroll: run the layers as a Python loop; an `unstack`ed model always does.

        Returns:
          Hidden states [B,T,D] after the final norm in `dtype`, and the keys (rotated) and values
          of these tokens, each [L,B,T,K,d].
        """
        rotation = rotary_turn(self.config, positions)
        x = embed_tokens(self.embed.get_value(), tokens).astype(self.dtype)
        x = constrain(x, ("batch", None, None))

        def layer(x: jax.Array, inputs: tuple[Weights, Any]) -> tuple[jax.Array, Any]:
            weights, layer_cache = inputs
            return self._layer(weights, x, rotation, attend, layer_cache)

        if remat:
            # Inside a scan nothing can be shared with the forward pass anyway.
            layer = jax.checkpoint(layer, prevent_cse=unroll)

        if unroll or isinstance(self.layers, nnx.List):
            new = []
            for index in range(self.config.num_layers):
                x, keys_values = layer(x, (self._weights_of(index), _cache_of(cache, index)))
                new.append(keys_values)
            keys, values = jax.tree.map(lambda *each: jnp.stack(each), *new)
        else:
            stacked = {name: parameter.get_value() for name, parameter in self.layers.items()}
            x, (keys, values) = jax.lax.scan(layer, x, (stacked, cache))

        x = rms_norm(x, self.final_norm.get_value(), self.config.norm_eps)
        return x, (keys, values)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V] in float32 of hidden states [..., D]."""
        matrix = self.embed if self.config.tie_embeddings else self.unembed
        # The matrix stands first: XLA's CPU kernels then need not turn it at every step.
        return jnp.moveaxis(
            jnp.einsum(
                "vd,...d->v...",
                matrix.get_value().astype(self.dtype),
                hidden,
                preferred_element_type=jnp.float32,
            ),
            0,
            -1,
        )

    def _layer(
        self, weights: Weights, x: jax.Array, rotation: Turn, attend: Attend, cache: Any
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        eps = self.config.norm_eps

        def matmul(inputs: jax.Array, name: str) -> jax.Array:
            matrix, summed = weights[name].astype(self.dtype), _INPUT_AXES[name]
            if isinstance(self.layers, nnx.List):  # [*outputs, *inputs], see `unstack`
                last = tuple(range(-summed, 0))
                out = jnp.moveaxis(jnp.tensordot(matrix, inputs, (last, last)), (-2, -1), (0, 1))
            else:
                out = project(inputs, matrix, summed)
            bias = weights.get(f"{name}_bias")
            return out if bias is None else out + bias.astype(self.dtype)

        h = rms_norm(x, weights["attention_norm"], eps)
        q = rotate(matmul(h, "q"), rotation)
        k = rotate(matmul(h, "k"), rotation)
        v = matmul(h, "v")
        x = x + matmul(attend(q, k, v, cache), "o")

        h = rms_norm(x, weights["mlp_norm"], eps)
        h = jax.nn.silu(matmul(h, "gate")) * matmul(h, "up")
        x = x + matmul(h, "down")
        return constrain(x, ("batch", None, None)), (k, v)

    def _weights_of(self, index: int) -> Weights:
        if isinstance(self.layers, nnx.List):
            return {name: value.get_value() for name, value in self.layers[index].items()}
        return {name: value.get_value()[index] for name, value in self.layers.items()}


def abstract_decoder(
    config: ModelConfig, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> Decoder:
    """A `Decoder` whose parameters are shapes only: nothing is allocated."""
    model: Decoder = nnx.eval_shape(
        lambda: Decoder(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype)
    )
    return model


def unstack(model: Decoder) -> Decoder:
    """The same model with every layer's weights as arrays of their own, to be run as a Python loop.

    On CPU a decode step is bound by reading the weights, and slicing a stacked array copies it
    first: unstacked, a step of SmolLM2-135M with 16 rows takes 0.6 of the time. For running only:
    checkpoints and training are of the stacked form. The arrays outside the layers are shared with
    `model`. Matrices are turned to [*outputs, *inputs] and multiplied from the left, which XLA's
    CPU kernels do up to twice as fast for the few rows of a decode step.
    """

    def turned(name: str, value: jax.Array, axes: tuple[str, ...]) -> nnx.Param[Any]:
        summed = _INPUT_AXES.get(name, 0)
        value = value.transpose(*range(summed, value.ndim), *range(summed))
        return nnx.Param(value, axes=(*axes[summed:], *axes[:summed]))

    graph, state = nnx.split(model)
    out: Decoder = nnx.merge(graph, state)
    out.layers = nnx.List(
        nnx.Dict(
            {
                name: turned(name, parameter.get_value()[index], parameter.axes[1:])
                for name, parameter in model.layers.items()
            }
        )
        for index in range(model.config.num_layers)
    )
    return out


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(inputs: jax.Array, matrix: jax.Array, summed: int) -> jax.Array:
    """`inputs` [B,T,*in] times `matrix` [*in,*out] over the `summed` axes of `in` -> [B,T,*out].

    The gradient of the matrix is the product of inputs and cotangent in this order. JAX takes them
    the other way round, and XLA on CPU then first turns the cotangents of the MLP's inner size, the
    largest arrays of a layer.
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


def embed_tokens(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of `table` [V,D] for `tokens` [B,T] -> [B,T,D]."""
    return jnp.take(table, tokens, axis=0, mode="clip")


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis (Zhang and Sennrich 2019), in float32."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    # As the reference does: back to the input's type before the weight.
    return (wide * scale).astype(x.dtype) * weight.astype(x.dtype)


def rotary_frequencies(config: ModelConfig) -> Frequencies:
    """Radians per position [d/2] in float32 (Su et al. 2021, arXiv 2104.09864), scaled as told."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies: Frequencies = np.float32(1) / np.power(np.float32(config.rope_theta), exponents)
    if config.rope_scaling is None:
        return frequencies
    return _scale_frequencies(frequencies, config.rope_scaling)


def _scale_frequencies(frequencies: Frequencies, scaling: RopeScaling) -> Frequencies:
    slow: Frequencies = frequencies / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return slow
    if scaling.kind == "factors":
        divided: Frequencies = frequencies / np.asarray(scaling.factors, np.float32)
        return divided
    # llama3: how many turns a frequency makes within the original context decides.
    turns = scaling.original_max_position * frequencies / np.float32(2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep: Frequencies = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    mixed: Frequencies = (1 - keep) * slow + keep * frequencies
    return mixed


def rotary_turn(config: ModelConfig, positions: jax.Array) -> Turn:
    """Cosine and sine of the angles of `positions` [B,T]: computed once, not in every layer."""
    frequencies = jnp.asarray(rotary_frequencies(config))
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    return Turn(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, turn: Turn) -> jax.Array:
    """Rotates `x` [B,T,heads,d]; the halves of `d` are the pairs' sides."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = turn
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _cache_of(cache: Any, index: int) -> Any:
    if isinstance(cache, list):
        return cache[index]
    return jax.tree.map(lambda leaf: leaf[index], cache)
