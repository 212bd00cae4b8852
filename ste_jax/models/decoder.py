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
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ste_jax.models.attention import Attend, capped
from ste_jax.models.config import INPUT_AXES, LayerKind, ModelConfig
from ste_jax.models.layer import Layer, norm
from ste_jax.models.rotary import Rotation, rotation_at
from ste_jax.parallel.sharding import constrain

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
    """[V], where `embed` is in int8."""
    unembed_scale: nnx.Param[Any] | None = None
    """[V], where `unembed` is in int8."""
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
        run = self._layers_run(positions, attend, remat)
        x = self._embedded(tokens)
        weights = [{name: one.get_value() for name, one in each.items()} for each in self.layers]
        given = list(zip(weights, cache or [None] * len(weights), strict=True))
        new: KeysValues = []
        scanned = 0 if self.unstacked else self.config.cycle_groups
        if scanned:

            def cycle(x: jax.Array, given: Sequence[Any]) -> tuple[jax.Array, KeysValues]:
                new = []
                for place, of_layer in enumerate(given):
                    x, keys_values = run(place, x, of_layer, scanned=True)
                    new.append(keys_values)
                return x, new

            x, new = jax.lax.scan(cycle, x, given[:scanned])
        rest = range(self.config.num_layers - len(given) + scanned, self.config.num_layers)
        for layer, of_layer in zip(rest, given[scanned:], strict=True):
            if self.unstacked:
                x, keys_values = run(layer, x, of_layer)
            else:
                x, keys_values = run(layer, x, jax.tree.map(lambda leaf: leaf[0], of_layer))
                keys_values = jax.tree.map(lambda leaf: leaf[None], keys_values)
            new.append(keys_values)
        x = norm(x, self.final_norm.get_value(), self.config, features_first=self.unstacked)
        return jnp.moveaxis(x, 0, -1) if self.unstacked else x, new

    def _embedded(self, tokens: jax.Array) -> jax.Array:
        """What the first layer takes of `tokens` [B,T]."""
        x = embed_tokens(self.embed.get_value(), tokens)
        if self.embed_scale is not None:
            x = x * embed_tokens(self.embed_scale.get_value(), tokens)[..., None]
        x = x.astype(self.dtype)
        if self.config.scale_embeddings:
            # As the reference does: the root is rounded to the type first.
            x = x * jnp.asarray(self.config.hidden_size**0.5, self.dtype)
        return self._held(jnp.moveaxis(x, -1, 0) if self.unstacked else x)

    def _layers_run(
        self, positions: jax.Array, attend: Attend, remat: bool
    ) -> Callable[..., tuple[jax.Array, Any]]:
        """A function that runs layer number `layer`, with its weights and its cache, on x. It
        returns the new x, and the layer's keys and values."""
        config = self.config
        rotations = {kind: self._rotation(kind, positions) for kind in config.kinds}

        def run(layer: int, x: jax.Array, given: Any, scanned: bool = False) -> tuple[Any, Any]:
            kind = config.kind_of(layer)

            def of_kind(x: jax.Array, given: Any) -> tuple[Any, Any]:
                weights, cache = given
                one = Layer(config, weights, self.dtype, features_first=self.unstacked)
                x, keys_values = one(x, kind, rotations[kind], attend, cache)
                return self._held(x), keys_values

            if remat:
                # Inside a scan nothing can be shared with the forward pass anyway.
                of_kind = jax.checkpoint(of_kind, prevent_cse=not scanned)
            return of_kind(x, given)

        return run

    @jax.named_scope("head")
    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V] in float32 of hidden states [..., D]."""
        tied = self.config.tie_embeddings
        matrix = self.embed if tied else self.unembed
        scale = self.embed_scale if tied else self.unembed_scale
        # The matrix stands first: XLA's CPU kernels then need not transpose it at every step.
        logits = jnp.einsum(
            "vd,...d->v...",
            matrix.get_value().astype(self.dtype),
            hidden,
            preferred_element_type=jnp.float32,
        )
        if self.unstacked:  # transposed by the product itself they take half as long again
            logits = jax.lax.optimization_barrier(logits)
        logits = jnp.moveaxis(logits, 0, -1)
        if scale is not None:
            logits = logits * scale.get_value()
        return capped(logits, self.config.final_softcap)

    def _rotation(self, kind: LayerKind, positions: jax.Array) -> Rotation:
        size = self.config.head_dim
        if not self.unstacked:
            return rotation_at(kind, size, positions)
        # XLA on CPU would have each layer compute it anew for each head. No position is below 0,
        # but what comes out of a branch is an array of its own.
        shape = (size // 2, *positions.shape)
        cos, sin = jax.lax.cond(
            positions[0, 0] >= 0,
            lambda: rotation_at(kind, size, positions, features_first=True)[:2],
            lambda: (jnp.ones(shape), jnp.zeros(shape)),
        )
        return Rotation(cos, sin, axis=1)

    def _held(self, x: jax.Array) -> jax.Array:
        """Hidden states divided by batch."""
        return constrain(x, (None, "batch", None) if self.unstacked else ("batch", None, None))


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
    `model`. Matrices are transposed to [*outputs, *inputs] and between the layers features stand
    first, [D,B,T]: every product is then a plain matrix product from the left, which is what XLA's
    CPU kernels do best, and nothing is transposed in between.
    """

    def outputs_first(name: str, value: jax.Array, axes: tuple[str, ...]) -> nnx.Param[Any]:
        summed = INPUT_AXES.get(name, 0)
        value = value.transpose(*range(summed, value.ndim), *range(summed))
        return nnx.Param(value, axes=(*axes[summed:], *axes[:summed]))

    config = model.config
    layers: list[dict[str, nnx.Param[Any]]] = [{} for _ in range(config.num_layers)]
    for group, of_group in zip(config.groups, model.layers, strict=True):
        for name, parameter in of_group.items():
            for index, layer in enumerate(group):
                layers[layer][name] = outputs_first(
                    name, parameter.get_value()[index], parameter.axes[1:]
                )
    graph, state = nnx.split(model)
    out: Decoder = nnx.merge(graph, state)
    out.unstacked = True
    out.layers = nnx.List(nnx.Dict(of_layer) for of_layer in layers)
    return out


def embed_tokens(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of `table` [V,D] or [V] for `tokens` [B,T] -> [B,T,D] or [B,T]."""
    return jnp.take(table, tokens, axis=0, mode="clip")
