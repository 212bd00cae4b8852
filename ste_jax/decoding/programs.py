"""Which device programs does decoding run, and what goes in and out of them?

Shapes: `L` layers of one of the model's groups, `G` groups, `N` rows of a group, `K` kv heads, `d`
head size, `C` a prefill chunk, `S` prompt bucket, `S'` a block of new tokens, see `attend` (`S` and
`S'` are less where a window makes do with less), `R` rows of a scoring batch, `V` vocabulary.

Every program is a pure function of the weights, of caches and of small arrays that the host owns; a
cache that a program changes is donated, so it is written in place. One program per purpose and
shape:

    prefill     [1,C] tokens after what is in the buffer; writes theirs into the buffer
    load        puts stored keys and values of one chunk into the buffer
    fill        copies the buffer into one group's prefix
    decode      up to n steps of all G*N rows of a shape
    score       log-probabilities of [R,T] given tokens after what is in the buffer
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ste_jax.decoding.attend import (
    past_blocks,
    places,
    shared_prefix_attend,
)
from ste_jax.decoding.caches import (
    Axes,
    Cache,
    fill_jitted,
    keys_transposed,
    layers_of,
    load,
    load_jitted,
    windows_of,
    zero_shapes,
    zeros_jitted,
)
from ste_jax.decoding.decode_round import Control, decode
from ste_jax.decoding.sampling import token_logprobs
from ste_jax.models.attention import Attend
from ste_jax.models.decoder import Decoder, unstack
from ste_jax.models.int8 import with_int8
from ste_jax.models.kernels import Kernels, kernels_of
from ste_jax.parallel.sharding import constrain, state_sharding


class Programs:
    """The jitted programs of one model on one mesh.

    `as_list`: run the layers as a Python loop over arrays of their own, not as a compiled loop over
    stacked ones. `int8`: keep the matrices in int8, see `models.int8`. `kernels`: those of
    the devices where none are given. Of an abstract model, whose
    layers are stacked, on a mesh of devices that need not be here, the programs can be lowered, not
    run.
    """

    def __init__(
        self,
        model: Decoder,
        mesh: Mesh,
        *,
        dtype: Any,
        chunk: int,
        steps: int,
        as_list: bool,
        int8: bool = False,
        kernels: Kernels | None = None,
    ) -> None:
        self.config = model.config
        self.steps = steps
        self._dtype = jnp.dtype(dtype)
        self._as_list = as_list
        self._windows = windows_of(model.config, stacked=not as_list)
        self._mesh = mesh
        self._abstract = isinstance(model.embed.get_value(), jax.ShapeDtypeStruct)
        if int8:
            to_int8 = functools.partial(with_int8, dtype=dtype)
            model = nnx.eval_shape(to_int8, model) if self._abstract else to_int8(model)
        graph, state = nnx.split(unstack(model) if as_list else model)
        place = _shapes_on if self._abstract else _arrays_on
        state = place(mesh, state, None if int8 else self._dtype)
        # Plain arrays: flattening the state's own classes costs milliseconds in every call.
        self._weights, structure = jax.tree.flatten(state)
        kernels = kernels or kernels_of(mesh.devices.flat[0])
        if mesh.size > 1:
            kernels = kernels._replace(decode=None)  # it does not know how to be divided
        self._keys_transposed = keys_transposed(kernels, stacked=not as_list)
        jitted = _jitted(graph, structure, self._dtype, chunk, steps, not as_list, kernels)
        self._prefill, self._score, self._decode = map(self._within_mesh, jitted)
        self.load = self._within_mesh(functools.partial(load_jitted, stacked=not as_list))
        fill = functools.partial(
            fill_jitted, stacked=not as_list, keys_transposed=self._keys_transposed
        )
        self.fill = self._within_mesh(fill)
        self._zeros = self._within_mesh(zero_shapes if self._abstract else zeros_jitted)

    # The public methods: each runs its program with the weights.

    def prefill(
        self, buffer: Cache, tokens: np.ndarray[Any, Any], start: int
    ) -> tuple[Cache, Cache]:
        """Runs tokens [1,C] at positions from `start` on.

        Returns the buffer with their keys and values written, and these alone: `k`, `v` [L,K,C,d].
        """
        out: tuple[Cache, Cache] = self._prefill(
            self._weights, buffer=buffer, tokens=tokens, start=np.int32(start)
        )
        return out

    def decode(
        self, prefix: Cache, pasts: list[Cache], control: Control, eos_ids: np.ndarray[Any, Any]
    ) -> tuple[list[Cache], jax.Array, jax.Array]:
        """Runs up to `steps` steps, fewer when no row is left running.

        `pasts` are the first blocks of what the rows have written, as many as they will fill.
        Returns these, the tokens drawn [steps,G,N] (or `NOTHING`, or `NOT_FINITE`, after which the
        row has ended) and their log-probabilities.
        """
        out: tuple[list[Cache], jax.Array, jax.Array] = self._decode(
            self._weights, prefix=prefix, pasts=pasts, control=control, eos_ids=eos_ids
        )
        return out

    def score(
        self,
        buffer: Cache,
        tokens: np.ndarray[Any, Any],
        targets: np.ndarray[Any, Any],
        start: int,
    ) -> jax.Array:
        """Log-probabilities [R,T] of `targets`, each after `tokens` [R,T] up to there."""
        out: jax.Array = self._score(
            self._weights, buffer=buffer, tokens=tokens, targets=targets, start=np.int32(start)
        )
        return out

    def lower(self, name: Literal["prefill", "decode"], **given: Any) -> jax.stages.Lowered:
        """The program that the method `name` runs, lowered and not yet compiled; `given` are the
        arguments that this method gives to it. Arrays may be abstract."""
        program = {"prefill": self._prefill, "decode": self._decode}[name]
        lower = self._within_mesh(program.__wrapped__.lower)  # type: ignore[attr-defined]
        out: jax.stages.Lowered = lower(self._weights, **given)
        return out

    def buffer(self, bucket: int) -> Cache:
        """An empty buffer: `k`, `v` [L,K,S,d], whatever a layer sees of it."""
        shape = (self.config.num_kv_heads, bucket, self.config.head_dim)
        return self._empty(("kv_heads", None, None), lambda _: (("k", shape), ("v", shape)))

    def prefix(self, groups: int, bucket: int) -> Cache:
        """Empty prompts of a shape: `prefix_v` [L,G,K,S,d], and `prefix_k`, the same or
        [L,G,K,d,S], see `caches.keys_transposed`."""
        each = (groups, self.config.num_kv_heads)
        return self._empty(
            ("batch", "kv_heads", None, None),
            lambda window: self._stretches("prefix_", each, places(bucket, window)),
        )

    def blocks(self, bucket: int) -> list[int]:
        """The sizes of the blocks of `bucket` new tokens; one where every layer has a window."""
        return past_blocks(bucket) if None in self._windows else [bucket]

    def pasts(self, groups: int, rows: int, bucket: int) -> list[Cache]:
        """What a shape's rows write, empty: for each block `v` [L,G,N,K,S',d], and `k`, the same or
        [L,G,N,K,d,S'], see `caches.keys_transposed`. Layers with a window have but the first."""
        each = (groups, rows, self.config.num_kv_heads)

        def shapes(index: int, size: int, window: int | None) -> Any:
            if window is None:
                return self._stretches("", each, size)
            return self._stretches("", each, places(bucket, window)) if index == 0 else ()

        return [
            self._empty(
                ("batch", None, "kv_heads", None, None), functools.partial(shapes, index, size)
            )
            for index, size in enumerate(self.blocks(bucket))
        ]

    def _stretches(self, name: str, each: tuple[int, ...], size: int) -> Any:
        """Names and shapes of keys and values of so many stretches of `size` tokens."""
        values = (size, self.config.head_dim)
        keys = values[::-1] if self._keys_transposed else values
        return (f"{name}k", (*each, *keys)), (f"{name}v", (*each, *values))

    def _empty(self, axes: Axes, shapes_of: Callable[[int | None], Any]) -> Cache:
        """A cache of zeros; `shapes_of(window)` are a layer's arrays."""
        groups = layers_of(self.config, stacked=not self._as_list)
        shapes = tuple(
            tuple(
                (name, shape if self._as_list else (len(layers), *shape))
                for name, shape in shapes_of(window)
            )
            for layers, window in zip(groups, self._windows, strict=True)
        )
        axes = axes if self._as_list else ("layers", *axes)
        out: Cache = self._zeros(dtype=self._dtype, axes=axes, shapes=shapes)
        return out

    def _within_mesh(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with jax.set_mesh(self._mesh):
                return function(*args, **kwargs)

        return call


@functools.lru_cache(maxsize=8)
def _jitted(
    graph: Any,
    structure: Any,
    dtype: Any,
    chunk: int,
    steps: int,
    stacked: bool,
    kernels: Kernels,
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """The programs that run the model: prefill, score, decode. Judges of one architecture share
    them, so that the next one's are compiled already; they hold no weights."""

    def model_of(weights: list[jax.Array]) -> Decoder:
        merged: Decoder = nnx.merge(graph, jax.tree.unflatten(structure, weights))
        merged.dtype = dtype
        return merged

    def program(function: Callable[..., Any], *donated: str) -> Callable[..., Any]:
        return jax.jit(functools.partial(function, model_of), donate_argnames=donated)

    attend = functools.partial(shared_prefix_attend, chunk=chunk, kernels=kernels)
    return (
        program(functools.partial(_prefill, attend=attend, stacked=stacked), "buffer"),
        program(functools.partial(_score, attend=attend)),
        program(functools.partial(decode, steps=steps, stacked=stacked, kernels=kernels), "pasts"),
    )


def _arrays_on(mesh: Mesh, state: Any, dtype: Any) -> Any:
    """`state` in `dtype`, or in its own types, laid on `mesh`."""
    if dtype is not None:
        state = jax.tree.map(lambda x: x.astype(dtype), state)
    return jax.device_put(state, state_sharding(state, mesh))


def _shapes_on(mesh: Mesh, state: Any, dtype: Any) -> Any:
    """What `_arrays_on` would give, of an abstract state."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding),
        state,
        state_sharding(state, mesh),
    )


def _prefill(
    model_of: Callable[[Any], Decoder],
    weights: Any,
    *,
    buffer: Cache,
    tokens: jax.Array,
    start: jax.Array,
    attend: Callable[[jax.Array], Attend],
    stacked: bool,
) -> tuple[Cache, Cache]:
    positions = start + jnp.arange(tokens.shape[1])[None]
    _, new = model_of(weights)(tokens, positions, attend(start), buffer)
    axes = (*(("layers",) if stacked else ()), "kv_heads", None, None)

    def heads_first(x: jax.Array) -> jax.Array:
        """[L,1,C,K,d] -> [L,K,C,d], with L or without."""
        return constrain(x.squeeze(-4).swapaxes(-3, -2), axes)

    piece = [{"k": heads_first(keys), "v": heads_first(values)} for keys, values in new]
    return load(buffer=buffer, piece=piece, start=start, stacked=stacked), piece


def _score(
    model_of: Callable[[Any], Decoder],
    weights: Any,
    *,
    buffer: Cache,
    tokens: jax.Array,
    targets: jax.Array,
    start: jax.Array,
    attend: Callable[[jax.Array], Attend],
) -> jax.Array:
    model = model_of(weights)
    rows, time = tokens.shape
    positions = start + jnp.broadcast_to(jnp.arange(time), (rows, time))
    hidden, _ = model(tokens, positions, attend(start), buffer)
    # Logits of one time step at once: those of all, [R,T,V], could be larger than the model.
    logprobs = jax.lax.map(
        lambda step: token_logprobs(model.logits(step[0]), step[1]),
        (hidden.swapaxes(0, 1), targets.T),
    )
    return constrain(logprobs.T, (None, None))
