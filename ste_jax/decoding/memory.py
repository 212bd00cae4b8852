"""What fills the devices' memory, and which knob makes room?

Sizes are those of the arrays that stay: the weights, and the caches as their shapes say. What a
program needs beside them while it runs, the compiler alone knows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from ste_jax.config.schema import DecodingKnobs
from ste_jax.decoding.attend import places
from ste_jax.decoding.shapes import Shape, choose_shape
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.models.int8 import with_int8
from ste_jax.parallel.sharding import parameter_sharding
from ste_jax.system.errors import WorkError

GB = 1e9


@dataclass(frozen=True)
class Footprint:
    """Bytes of each part: counted once, over however many devices it is divided, or those of one
    device."""

    weights: float
    prefix: float
    """A shape's prompts."""
    past: float
    """What a shape's rows have written."""
    buffer: float
    """The prompt that is being computed."""
    store: float
    """Computed pieces of prompts, at most."""

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(dataclasses.astuple(self)))


def footprint(config: ModelConfig, knobs: DecodingKnobs, shape: Shape) -> Footprint:
    """What decoding in a shape keeps in memory."""
    size = jnp.dtype(knobs.dtype).itemsize
    token = 2 * config.num_kv_heads * config.head_dim * size  # keys and values of one layer
    windows = [config.kind_of(layer).window for layer in range(config.num_layers)]

    def cached(bucket: int) -> int:
        return token * sum(places(bucket, window) for window in windows)

    return Footprint(
        weights=_weights(config, knobs),
        prefix=shape.groups * cached(shape.prompt),
        past=shape.groups * shape.rows * cached(shape.new),
        buffer=config.num_layers * token * knobs.prompt_buckets[-1],
        store=config.num_layers * token * knobs.cache_tokens,
    )


def bytes_per_device(config: ModelConfig, knobs: DecodingKnobs, mesh: Mesh) -> float:
    """What the fullest device of a mesh keeps, in bytes, with the largest shape."""
    return on_a_device(config, knobs, _largest(knobs), mesh).total


def on_a_device(config: ModelConfig, knobs: DecodingKnobs, shape: Shape, mesh: Mesh) -> Footprint:
    """What the fullest device of a mesh keeps while a shape is decoded. Caches are divided over no
    more devices than they have kv heads."""
    found = footprint(config, knobs, shape)
    parameters = config.parameters().values()
    divided = sum(
        math.prod(parameter_sharding(one.shape, one.axes, mesh).shard_shape(one.shape))
        for one in parameters
    )
    share = divided / sum(math.prod(one.shape) for one in parameters)
    heads = (config.num_kv_heads,)
    (mine,) = parameter_sharding(heads, ("kv_heads",), mesh).shard_shape(heads)
    of_caches = mine / config.num_kv_heads
    return Footprint(
        weights=found.weights * share,
        prefix=found.prefix * of_caches,
        past=found.past * of_caches,
        buffer=found.buffer * of_caches,
        store=found.store * of_caches,
    )


def _largest(knobs: DecodingKnobs) -> Shape:
    return choose_shape(knobs, knobs.prompt_buckets[-1], knobs.new_buckets[-1])


def _weights(config: ModelConfig, knobs: DecodingKnobs) -> int:
    """Bytes of the weights as decoding keeps them."""

    def kept() -> Decoder:
        model = Decoder(config, rngs=nnx.Rngs(0), param_dtype=knobs.dtype)
        return with_int8(model, knobs.dtype) if knobs.weights == "int8" else model

    return sum(one.size * one.dtype.itemsize for one in jax.tree.leaves(nnx.eval_shape(kept)))


def room_made(config: ModelConfig, knobs: DecodingKnobs, shape: Shape) -> list[tuple[str, float]]:
    """What the user can change, and about how many bytes each change frees: the most first."""
    found = footprint(config, knobs, shape)

    def freed_by(**changes: str) -> float:
        other = dataclasses.replace(knobs, **changes)  # type: ignore[arg-type]
        return found.total - footprint(config, other, shape).total

    groups = "singles" if shape.rows == 1 and knobs.singles else "groups"
    ways = {
        f"halve decoding.{groups}={shape.groups}": (found.prefix + found.past) // 2,
        f"halve decoding.group_size={shape.rows}": found.past // 2,
        f"halve the largest of decoding.prompt_buckets={_listed(knobs.prompt_buckets)}": (
            (found.prefix + found.buffer) // 2
        ),
        f"halve the largest of decoding.new_buckets={_listed(knobs.new_buckets)}": found.past // 2,
        f"set decoding.cache_tokens={knobs.cache_tokens} to 0": found.store,
        "set decoding.dtype to bfloat16": freed_by(dtype="bfloat16"),
        "set decoding.weights to int8": freed_by(weights="int8"),
        "spread decoding.mesh over twice the devices": found.total // 2,
    }
    if shape.groups == 1:
        del ways[f"halve decoding.{groups}={shape.groups}"]
    if shape.rows == 1:
        del ways[f"halve decoding.group_size={shape.rows}"]
    if knobs.dtype == "bfloat16":
        del ways["set decoding.dtype to bfloat16"]
    if knobs.weights == "int8":
        del ways["set decoding.weights to int8"]
    return sorted(ways.items(), key=lambda way: way[1], reverse=True)


def _listed(buckets: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, buckets))}]"


@dataclass(frozen=True)
class Memory:
    """Says which knobs to change where the devices' memory does not suffice."""

    config: ModelConfig
    knobs: DecodingKnobs
    devices: int

    @contextlib.contextmanager
    def explaining_out_of_memory(self, shape: Shape | None = None) -> Iterator[None]:
        """Turns a failed allocation in the `with` block into a `WorkError` that says what to do.

        `shape` is the one that runs (default: the largest)."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            text = " ".join(str(error).split())
            if not text.startswith("RESOURCE_EXHAUSTED") and "out of memory" not in text.lower():
                raise
            raise WorkError(self._advice(shape or _largest(self.knobs), text)) from error

    def _advice(self, shape: Shape, text: str) -> str:
        found = footprint(self.config, self.knobs, shape)
        ways = [
            f"{way} ({freed / GB:.3g} GB)"
            for way, freed in room_made(self.config, self.knobs, shape)
        ]
        return (
            f"decoding has no memory left on its {self.devices} device(s) ({text[:200]}): the "
            f"weights take {found.weights / GB:.3g} GB, {shape.groups} prompts of {shape.prompt} "
            f"tokens {found.prefix / GB:.3g} GB, {shape.groups * shape.rows} rows of {shape.new} "
            f"new tokens {found.past / GB:.3g} GB, the prompt buffer {found.buffer / GB:.3g} GB "
            f"and stored pieces of prompts up to {found.store / GB:.3g} GB, each counted once; to "
            f"free memory, the most first: {', or '.join(ways)}"
        )
