"""What does the model compute?

Shapes: `B` batch, `T` time, `D` model, `H` query heads, `K` kv heads, `d` head size, `F` the MLP's
inner size, `V` vocabulary, `L` layers.

One decoder for all families. Its parameters are those that `ModelConfig.parameters` declares.
Layers of several kinds follow each other in a cycle (Gemma: local ones, then a global one): those
at one place of the cycle are a group, stacked along a first axis `L`, and the cycle is scanned, so
that a program's size does not grow with the depth. Norms, rotary embedding, softmax and logits are
float32; matmuls run in `dtype`.

The model neither holds nor writes a cache. It is given an `attend` function and, per layer,
whatever that function wants to see (`cache`), and returns the keys and values of the new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ste_jax.models.attention import Attend, Seen, capped
from ste_jax.models.config import INPUT_AXES, LORA_A, LORA_B, SCALE, LayerKind, ModelConfig
from ste_jax.models.experts import Experts, choose, mix_experts
from ste_jax.models.rotary import Turn, rotary_turn, rotate
from ste_jax.parallel.sharding import constrain

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}

Weights = dict[str, jax.Array]
"""The weights of one layer, or of a group of them stacked, by name."""

KeysValues = list[tuple[jax.Array, jax.Array]]
"""The keys (rotated) and values of new tokens: of each group of layers [L,B,T,K,d], or, of an
`unstack`ed model, of each layer [B,T,K,d]."""


class Decoder(nnx.Module):
    """A decoder with stacked layers.

    `nnx.split(model)` gives a graph definition and the state to jit pure functions of. Every
    parameter carries its logical axes as the metadata `axes`.
    """

    # What `ModelConfig.parameters` declares; `unembed` is there when the embeddings are not tied.
    embed: nnx.Param[Any]
    final_norm: nnx.Param[Any]
    unembed: nnx.Param[Any]
    layers: Any
    embed_scale: nnx.Param[Any] | None = None
    """[V], where `embed` is in int8; `unembed_scale` likewise."""
    unembed_scale: nnx.Param[Any] | None = None
    unstacked: bool = False
    """Whether `layers` are single ones in their order, as `unstack` leaves them."""

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
        groups: list[dict[str, nnx.Param[Any]]] = [{} for _ in config.groups]
        for path, declared in config.parameters().items():
            value = jnp.full(declared.shape, declared.mean, param_dtype)
            if declared.std:
                noise = jax.random.normal(rngs.params(), declared.shape, jnp.float32)
                value = value + (declared.std * noise).astype(param_dtype)
            parameter = nnx.Param(value, axes=declared.axes)
            if path.startswith("layers."):
                _, group, name = path.split(".")
                groups[int(group)][name] = parameter
            else:
                setattr(self, path, parameter)
        self.layers = nnx.List(nnx.Dict(group) for group in groups)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        attend: Attend,
        cache: list[Any] | None = None,
        *,
        remat: bool = False,
    ) -> tuple[jax.Array, KeysValues]:
        """Runs the layers on `tokens` [B,T] at `positions` [B,T].

        Args:
          attend: how a layer's queries see keys; see `ste_jax.models.attention`.
          cache: a pytree for each group of layers, whose leaves have a first axis `L`; for each
            layer, if the model is `unstack`ed. Handed to `attend` layer by layer, never written.
          remat: compute each layer again in the backward pass instead of keeping its insides.

        Returns:
          Hidden states [B,T,D] after the final norm in `dtype`, and the keys and values of these
          tokens in the same form as `cache`.
        """
        config = self.config
        rotations = {kind: self._rotation(kind, positions) for kind in config.kinds}
        x = embed_tokens(self.embed.get_value(), tokens)
        if self.embed_scale is not None:
            x = x * embed_tokens(self.embed_scale.get_value(), tokens)[..., None]
        x = x.astype(self.dtype)
        if config.scale_embeddings:
            # As the reference does: the root is rounded to the type first.
            x = x * jnp.asarray(config.hidden_size**0.5, self.dtype)
        x = self._held(jnp.moveaxis(x, -1, 0) if self.unstacked else x)

        def run(layer: int, x: jax.Array, given: Any, scanned: bool = False) -> tuple[Any, Any]:
            """One layer, of its weights and its cache: x, and its keys and values."""
            kind = config.kind_of(layer)

            def of_kind(x: jax.Array, given: Any) -> tuple[Any, Any]:
                weights, layer_cache = given
                return self._layer(weights, x, kind, rotations[kind], attend, layer_cache)

            if remat:
                # Inside a scan nothing can be shared with the forward pass anyway.
                of_kind = jax.checkpoint(of_kind, prevent_cse=not scanned)
            return of_kind(x, given)

        def cycle(x: jax.Array, given: Sequence[Any]) -> tuple[jax.Array, KeysValues]:
            new = []
            for place, of_layer in enumerate(given):
                x, keys_values = run(place, x, of_layer, scanned=True)
                new.append(keys_values)
            return x, new

        weights = [{name: one.get_value() for name, one in each.items()} for each in self.layers]
        given = list(zip(weights, cache or [None] * len(weights), strict=True))
        new: KeysValues = []
        scanned = 0 if self.unstacked else config.cycle_groups
        if scanned:
            x, new = jax.lax.scan(cycle, x, given[:scanned])
        rest = range(config.num_layers - len(given) + scanned, config.num_layers)
        for layer, of_layer in zip(rest, given[scanned:], strict=True):
            if self.unstacked:
                x, keys_values = run(layer, x, of_layer)
            else:
                x, keys_values = run(layer, x, jax.tree.map(lambda leaf: leaf[0], of_layer))
                keys_values = jax.tree.map(lambda leaf: leaf[None], keys_values)
            new.append(keys_values)
        x = self._norm(x, self.final_norm.get_value())
        return jnp.moveaxis(x, 0, -1) if self.unstacked else x, new

    @jax.named_scope("head")
    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V] in float32 of hidden states [..., D]."""
        tied = self.config.tie_embeddings
        matrix = self.embed if tied else self.unembed
        scale = self.embed_scale if tied else self.unembed_scale
        # The matrix stands first: XLA's CPU kernels then need not turn it at every step.
        logits = jnp.einsum(
            "vd,...d->v...",
            matrix.get_value().astype(self.dtype),
            hidden,
            preferred_element_type=jnp.float32,
        )
        if self.unstacked:  # turned by the product itself they take half as long again
            logits = jax.lax.optimization_barrier(logits)
        logits = jnp.moveaxis(logits, 0, -1)
        if scale is not None:
            logits = logits * scale.get_value()
        return capped(logits, self.config.final_softcap)

    def _rotation(self, kind: LayerKind, positions: jax.Array) -> Turn:
        size = self.config.head_dim
        if not self.unstacked:
            return rotary_turn(kind, size, positions)
        # XLA on CPU would have each layer compute it anew for each head. No position is below 0,
        # but what comes out of a branch is an array of its own.
        shape = (size // 2, *positions.shape)
        cos, sin = jax.lax.cond(
            positions[0, 0] >= 0,
            lambda: rotary_turn(kind, size, positions, features_first=True)[:2],
            lambda: (jnp.ones(shape), jnp.zeros(shape)),
        )
        return Turn(cos, sin, axis=1)

    def _held(self, x: jax.Array) -> jax.Array:
        """Hidden states divided by batch."""
        return constrain(x, (None, "batch", None) if self.unstacked else ("batch", None, None))

    def _norm(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        config = self.config
        after = 2 if self.unstacked else 0
        return rms_norm(x, weight, config.norm_eps, plus_one=config.norm_plus_one, after=after)

    def _layer(
        self,
        weights: Weights,
        x: jax.Array,
        kind: LayerKind,
        rotation: Turn,
        attend: Attend,
        cache: Any,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        config = self.config

        def features_last(inputs: jax.Array) -> jax.Array:
            """[*features, B, T] of an `unstack`ed model -> [B, T, *features]."""
            return jnp.moveaxis(inputs, (-2, -1), (0, 1)) if self.unstacked else inputs

        def back(outputs: jax.Array) -> jax.Array:
            """The other way."""
            return jnp.moveaxis(outputs, (0, 1), (-2, -1)) if self.unstacked else outputs

        def per_output(values: jax.Array) -> jax.Array:
            """[*features], to be multiplied with or added to outputs."""
            return values[..., None, None] if self.unstacked else values

        def matmul(inputs: jax.Array, name: str) -> jax.Array:
            with jax.named_scope(name):  # profiles tell the matrices apart by it
                return multiplied(inputs, name)

        def multiplied(inputs: jax.Array, name: str) -> jax.Array:
            matrix, summed = weights[name].astype(self.dtype), INPUT_AXES[name]
            if self.unstacked:
                out = jnp.tensordot(matrix, inputs, summed)
            else:
                out = project(inputs, matrix, summed)
            if name + SCALE in weights:
                out = (out * per_output(weights[name + SCALE])).astype(self.dtype)
            if config.lora and name in config.lora.matrices:
                narrow, wide = (weights[name + end].astype(self.dtype) for end in (LORA_A, LORA_B))
                inner = config.lora.scale * project(features_last(inputs), narrow, summed)
                out = out + back(project(inner, wide, 1))
            bias = weights.get(f"{name}_bias")
            return out if bias is None else out + per_output(bias).astype(self.dtype)

        def normed(inputs: jax.Array, name: str) -> jax.Array:
            """Normed by the weight of that name, if the family has it."""
            return self._norm(inputs, weights[name]) if name in weights else inputs

        h = normed(x, "attention_norm")
        q = features_last(rotate(normed(matmul(h, "q"), "q_norm"), rotation))
        k = features_last(rotate(normed(matmul(h, "k"), "k_norm"), rotation))
        v = features_last(matmul(h, "v"))
        seen = Seen(
            scale=(config.query_scalar or config.head_dim) ** -0.5,
            window=kind.window,
            softcap=config.attention_softcap,
        )
        h = matmul(back(attend(q, k, v, cache, seen)), "o")
        x = x + normed(h, "attention_post_norm")

        h = normed(x, "mlp_norm")
        if config.experts:
            scores = features_last(matmul(h, "router"))
            choice = choose(scores, config.experts_per_token, config.normalize_experts)
            given = {name: weights.get(f"expert_{name}") for name in Experts._fields}
            experts = Experts(**{name: one for name, one in given.items() if one is not None})
            h = back(mix_experts(features_last(h), choice, experts))
        else:
            activation = _ACTIVATIONS[config.activation]
            h = matmul(activation(matmul(h, "gate")) * matmul(h, "up"), "down")
        x = x + normed(h, "mlp_post_norm")
        return self._held(x), (k, v)


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
    `model`. Matrices are turned to [*outputs, *inputs] and between the layers features stand first,
    [D,B,T]: every product is then a plain matrix product from the left, which is what XLA's CPU
    kernels do best, and nothing is turned in between.
    """

    def turned(name: str, value: jax.Array, axes: tuple[str, ...]) -> nnx.Param[Any]:
        summed = INPUT_AXES.get(name, 0)
        value = value.transpose(*range(summed, value.ndim), *range(summed))
        return nnx.Param(value, axes=(*axes[summed:], *axes[:summed]))

    config = model.config
    layers: list[dict[str, nnx.Param[Any]]] = [{} for _ in range(config.num_layers)]
    for group, of_group in zip(config.groups, model.layers, strict=True):
        for name, parameter in of_group.items():
            for index, layer in enumerate(group):
                layers[layer][name] = turned(name, parameter.get_value()[index], parameter.axes[1:])
    graph, state = nnx.split(model)
    out: Decoder = nnx.merge(graph, state)
    out.unstacked = True
    out.layers = nnx.List(nnx.Dict(of_layer) for of_layer in layers)
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
    """Rows of `table` [V,D] or [V] for `tokens` [B,T] -> [B,T,D] or [B,T]."""
    return jnp.take(table, tokens, axis=0, mode="clip")


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
