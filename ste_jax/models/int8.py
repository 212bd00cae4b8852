"""How are a model's matrices kept in 8 bits, so that decoding reads half as much of bfloat16?

Weight only, symmetric, one scale for each output channel (as in LLM.int8(), arXiv 2208.07339, but
for its outliers): W = values * scale, so x W = (x values) * scale. The values become the type of
`x` as they are read, within the product.

No library does it, for there is little to do. Qwix (0.1.8) converts a module by intercepting what
it does with its parameters, and fails on ours, which are in lists of dicts; its product of a
quantized array is this same product and scale.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ste_jax.models.config import INPUT_AXES, SCALE
from ste_jax.models.decoder import Decoder

LARGEST = 127
"""Values are from minus this to this, so that a matrix and its negative are kept alike."""

_SUMMED = {
    **{name: tuple(range(axes)) for name, axes in INPUT_AXES.items() if name != "router"},
    **{f"expert_{name}": (1,) for name in ("gate", "up", "down")},
}
"""Which axes of a layer's matrix its product sums over. The router is left out: it is small, and
its choices must not change."""


@partial(jax.jit, static_argnums=1)
def quantize(matrix: jax.Array, summed: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The int8 values of `matrix`, and the float32 scales of its outputs: less the axes `summed`.

    No element is further than half a scale from its value times its scale.
    """
    wide = matrix.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=summed, keepdims=True)
    scale = jnp.where(largest == 0, 1.0, largest / LARGEST)
    values = jnp.clip(jnp.round(wide / scale), -LARGEST, LARGEST).astype(jnp.int8)
    return values, jnp.squeeze(scale, summed)


def with_int8(model: Decoder, dtype: Any) -> Decoder:
    """The same model with its layers' matrices and its output matrix in int8, the rest in `dtype`.

    Embeddings that are not tied are looked up, not multiplied by: they stay in `dtype`. The result
    is for running only; it may be unstacked afterwards.
    """

    def parts(name: str, parameter: Any, summed: tuple[int, ...] | None) -> dict[str, Any]:
        value, axes = parameter.get_value(), parameter.axes
        if summed is None:
            return {name: nnx.Param(value.astype(dtype), axes=axes)}
        values, scale = quantize(value, summed)
        kept = tuple(axis for place, axis in enumerate(axes) if place not in summed)
        return {name: nnx.Param(values, axes=axes), name + SCALE: nnx.Param(scale, axes=kept)}

    graph, state = nnx.split(model)
    out: Decoder = nnx.merge(graph, state)
    outputs = "embed" if model.config.tie_embeddings else "unembed"
    for name in ("embed", "final_norm", "unembed"):
        if hasattr(model, name):
            of_outputs = (1,) if name == outputs else None
            for path, parameter in parts(name, getattr(model, name), of_outputs).items():
                setattr(out, path, parameter)
    groups = []
    for group in model.layers:
        layers: dict[str, Any] = {}
        for name, parameter in group.items():
            summed = _SUMMED.get(name)
            # After the first axis, of the layers.
            after = None if summed is None else tuple(axis + 1 for axis in summed)
            layers |= parts(name, parameter, after)
        groups.append(nnx.Dict(layers))
    out.layers = nnx.List(groups)
    return out
