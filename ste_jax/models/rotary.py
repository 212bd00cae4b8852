"""How does a query know how far away a key is? By rotary position embedding (Su et al. 2021, arXiv
2104.09864).

Shapes: `B` batch, `T` time, `d` head size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ste_jax.models.config import LayerKind, RopeScaling

Frequencies = np.ndarray[Any, Any]


class Rotation(NamedTuple):
    """The rotation at each position, in float32: [B,T,1,d/2], or with features first [d/2,B,T]."""

    cos: jax.Array
    sin: jax.Array
    axis: int
    """Where `d` stands in what is rotated."""


def rotary_frequencies(kind: LayerKind, head_dim: int) -> Frequencies:
    """Radians per position [d/2] in float32, scaled as the kind of layer says."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies: Frequencies = np.float32(1) / np.power(np.float32(kind.rope_theta), exponents)
    if kind.rope_scaling is None:
        return frequencies
    return _scale_frequencies(frequencies, kind.rope_scaling)


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


def rotation_at(
    kind: LayerKind, head_dim: int, positions: jax.Array, *, features_first: bool = False
) -> Rotation:
    """Cosine and sine of the angles of `positions` [B,T]: computed once, not in every layer."""
    frequencies = jnp.asarray(rotary_frequencies(kind, head_dim))
    where = positions.astype(jnp.float32)
    if features_first:
        angles = frequencies[:, None, None] * where
    else:
        angles = where[:, :, None, None] * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles), axis=1 if features_first else -1)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotates `x` [B,T,heads,d], or with features first [heads,d,B,T]; the halves of `d` are the
    pairs' sides."""
    cos, sin, axis = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=axis)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=axis).astype(x.dtype)
