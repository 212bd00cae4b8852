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
    decode      up to n steps of all G*N rows of a lane
    score       log-probabilities of [R,T] given tokens after what is in the buffer
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ste_jax.decoding.attend import (
    decode_attend,
    past_blocks,
    places,
    shared_prefix_attend,
)
from ste_jax.decoding.caches import (
    Axes,
    Cache,
    fill_jitted,
    load,
    load_jitted,
    zero_shapes,
    zeros_jitted,
)
from ste_jax.decoding.sampling import row_keys, sample, token_logprobs
from ste_jax.models.attention import Attend
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder, unstack
from ste_jax.models.int8 import with_int8
from ste_jax.models.kernels import Kernels, kernels_of
from ste_jax.parallel.sharding import constrain, state_sharding

NOTHING = -1
"""In place of a token: the row was not running at that step."""
NOT_FINITE = -2
"""In place of a token: the row's logits were not finite."""

NOWHERE = 2**30
"""A place behind the end of every cache: what is written there is dropped."""


class Control(NamedTuple):
    """What the host says about every row of a lane before a round: arrays [G,N] unless said."""

    token: np.ndarray[Any, Any]
    """The token to be fed next."""
    filled: np.ndarray[Any, Any]
    """How many tokens the row has fed so far: its place in what it has written."""
    active: np.ndarray[Any, Any]
    budget: np.ndarray[Any, Any]
    """`filled` at which the row ends."""
    prefix_length: np.ndarray[Any, Any]
    """[G]: tokens in the group's prefix."""
    temperature: np.ndarray[Any, Any]
    top_k: np.ndarray[Any, Any]
    top_p: np.ndarray[Any, Any]
    min_p: np.ndarray[Any, Any]
    stop_at_eos: np.ndarray[Any, Any]
    seed: np.ndarray[Any, Any]
    """[G,N,2] uint32, as `sampling.row_keys` takes it."""
    row_id: np.ndarray[Any, Any]
    """[G,N,2] uint32."""
    sample: np.ndarray[Any, Any]


class Programs:
    """The jitted programs of one model on one mesh.

    `as_list`: run the layers as a Python loop over arrays of their own, not as a compiled loop over
    stacked ones. `int8`: keep the matrices in int8, see `models.int8`. Of an abstract model, whose
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
    ) -> None:
        self.config = model.config
        self.steps = steps
        self._dtype = jnp.dtype(dtype)
        self._as_list = as_list
        self._windows = _windows(model.config, stacked=not as_list)
        self._mesh = mesh
        self._abstract = isinstance(model.embed.get_value(), jax.ShapeDtypeStruct)
        if int8:
            model = with_int8(model, dtype)
        graph, state = nnx.split(unstack(model) if as_list else model)
        place = _shapes_on if self._abstract else _arrays_on
        state = place(mesh, state, None if int8 else self._dtype)
        # Plain arrays: flattening the state's own classes costs milliseconds in every call.
        self._weights, structure = jax.tree.flatten(state)
        kernels = kernels_of(mesh.devices.flat[0])
        if mesh.size > 1:
            kernels = kernels._replace(decode=None)  # it does not know how to be divided
        self._turned = _keys_turned(kernels, stacked=not as_list)
        jitted = _jitted(graph, structure, self._dtype, chunk, steps, not as_list, kernels)
        self._prefill, self._score, self._decode = map(self._within_mesh, jitted)
        self.load = self._within_mesh(functools.partial(load_jitted, stacked=not as_list))
        fill = functools.partial(fill_jitted, stacked=not as_list, turned=self._turned)
        self.fill = self._within_mesh(fill)
        self._zeros = self._within_mesh(zero_shapes if self._abstract else zeros_jitted)

    # Public faces of the programs; the weights go along.

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

        `pasts` are the first blocks of what the rows have written, as many as they will come to.
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
        """What the method of that name runs, before it is compiled; `given` is what that method
        hands on by name. Arrays may be abstract."""
        program = {"prefill": self._prefill, "decode": self._decode}[name]
        lower = self._within_mesh(program.__wrapped__.lower)  # type: ignore[attr-defined]
        out: jax.stages.Lowered = lower(self._weights, **given)
        return out

    def buffer(self, bucket: int) -> Cache:
        """An empty buffer: `k`, `v` [L,K,S,d], whatever a layer sees of it."""
        shape = (self.config.num_kv_heads, bucket, self.config.head_dim)
        return self._empty(("kv_heads", None, None), lambda _: (("k", shape), ("v", shape)))

    def prefix(self, groups: int, bucket: int) -> Cache:
        """Empty prompts of a lane: `prefix_v` [L,G,K,S,d], and `prefix_k` likewise or turned, see
        `_keys_turned`."""
        each = (groups, self.config.num_kv_heads)
        return self._empty(
            ("batch", "kv_heads", None, None),
            lambda window: self._stretches("prefix_", each, places(bucket, window)),
        )

    def blocks(self, bucket: int) -> list[int]:
        """The sizes of the blocks of `bucket` new tokens; one where every layer has a window."""
        return past_blocks(bucket) if None in self._windows else [bucket]

    def pasts(self, groups: int, rows: int, bucket: int) -> list[Cache]:
        """What a lane's rows write, empty: for each block `v` [L,G,N,K,S',d], and `k` likewise or
        turned. Layers with a window have but the first."""
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
        keys = values[::-1] if self._turned else values
        return (f"{name}k", (*each, *keys)), (f"{name}v", (*each, *values))

    def _empty(self, axes: Axes, shapes_of: Callable[[int | None], Any]) -> Cache:
        """A cache of zeros; `shapes_of(window)` are a layer's arrays."""
        groups = _layers(self.config, stacked=not self._as_list)
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
        program(functools.partial(_decode, steps=steps, stacked=stacked, kernels=kernels), "pasts"),
    )


def _layers(config: ModelConfig, *, stacked: bool) -> Sequence[range]:
    """The layers of each dict of a cache."""
    return config.groups if stacked else [range(at, at + 1) for at in range(config.num_layers)]


def _windows(config: ModelConfig, *, stacked: bool) -> list[int | None]:
    """The window of each dict of a cache."""
    return [config.kind_of(layers[0]).window for layers in _layers(config, stacked=stacked)]


def _keys_turned(kernels: Kernels, stacked: bool) -> bool:
    """Whether caches hold keys as [..., d, S], as plain products like them best.

    A decoding kernel wants them as values are, [..., S, d]. And of stacked layers the compiler for
    TPU writes whole heads, and would turn all of a turned past at every round.
    """
    return kernels.decode is None and not stacked


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

    def turned(x: jax.Array) -> jax.Array:
        """[L,1,C,K,d] -> [L,K,C,d], with L or without."""
        return constrain(x.squeeze(-4).swapaxes(-3, -2), axes)

    piece = [{"k": turned(keys), "v": turned(values)} for keys, values in new]
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


def _decode(
    model_of: Callable[[Any], Decoder],
    weights: Any,
    *,
    prefix: Cache,
    pasts: list[Cache],
    control: Any,
    eos_ids: jax.Array,
    steps: int,
    stacked: bool,
    kernels: Kernels,
) -> tuple[list[Cache], jax.Array, jax.Array]:
    model, turned = model_of(weights), _keys_turned(kernels, stacked)
    groups, rows = control.token.shape
    batch = groups * rows
    keys = row_keys(
        control.seed.reshape(batch, 2), control.row_id.reshape(batch, 2), control.sample.reshape(-1)
    )
    group_of, row_of = jnp.divmod(jnp.arange(batch), rows)
    windows = _windows(model.config, stacked=stacked)

    def step(carry: Any) -> Any:
        index, pasts, token, filled, active, tokens, logprobs = carry
        by_layer = [[block for block in blocks if block] for blocks in zip(*pasts, strict=True)]
        cache = [{**one, "pasts": blocks} for one, blocks in zip(prefix, by_layer, strict=True)]
        positions = (control.prefix_length[:, None] + filled).reshape(batch, 1)
        positions = constrain(positions, ("batch", None))
        hidden, new = model(
            token.reshape(batch, 1),
            positions,
            decode_attend(groups, control.prefix_length, filled, kernels, turned=turned),
            cache,
        )

        place = filled.reshape(-1)
        # The matrix product is divided by vocabulary, what sampling sums over it by rows; nothing
        # before or after is to be divided so.
        logits = constrain(model.logits(hidden[:, 0]), ("batch", "vocab"))
        drawn, logprob = sample(
            constrain(logits, ("rows", "vocab")),
            jax.vmap(jax.random.fold_in)(keys, place),
            jnp.where(active, control.temperature, 0.0).reshape(-1),
            control.top_k.reshape(-1),
            control.top_p.reshape(-1),
            control.min_p.reshape(-1),
            columns=turned,
        )
        drawn, logprob = (
            constrain(x.reshape(groups, rows), ("batch", None)) for x in (drawn, logprob)
        )
        finite = jnp.isfinite(logprob)
        shown = jnp.where(active, jnp.where(finite, drawn, NOT_FINITE), NOTHING)
        tokens = tokens.at[index].set(shown)
        logprobs = logprobs.at[index].set(jnp.where(active & finite, logprob, 0.0))

        # What is not finite must not stay behind: where masked it is multiplied by zero. And since
        # the place then depends on the logits, the past is read before it is written, which lets
        # the compiler write into it: else it copies all of it at every step.
        running = active & finite

        def write(index: int, block: Any, first: Any, new: Any, window: int | None) -> Any:
            """Writes the tokens of the rows that have come to the block of that number."""
            if not block:
                return block
            size = block["v"].shape[-2]
            at = filled % size if window else filled - index * first["v"].shape[-2]
            here = running & (at >= 0) & (at < size)
            place = jnp.where(here, at, NOWHERE).reshape(-1)
            new_k, new_v = (x.squeeze(-3) for x in new)
            # The layers' numbers stand among the indices: as a part of what is written at each, XLA
            # on TPU turns all of the past to have the layers beside the head, and back.
            layers = (jnp.arange(block["v"].shape[0])[:, None],) if stacked else ()
            row = (*layers, group_of, row_of)
            put = {"mode": "drop", "unique_indices": True}
            every = slice(None)
            key = (every, place) if turned else (place,)
            return {
                "k": block["k"].at[(*row, every, *key)].set(new_k, **put),
                "v": block["v"].at[(*row, every, place)].set(new_v, **put),
            }

        with jax.named_scope("write"):
            pasts = [
                [write(index, *one) for one in zip(layers, pasts[0], new, windows, strict=True)]
                for index, layers in enumerate(pasts)
            ]
        filled = filled + active
        ended = jnp.any(drawn[..., None] == eos_ids, axis=-1) & control.stop_at_eos
        token = jnp.where(active, drawn, token)
        active = active & ~ended & finite & (filled < control.budget)
        return index + 1, pasts, token, filled, active, tokens, logprobs

    start = (
        0,
        pasts,
        control.token,
        control.filled,
        control.active,
        jnp.full((steps, groups, rows), NOTHING, jnp.int32),
        jnp.zeros((steps, groups, rows), jnp.float32),
    )
    ended = jax.lax.while_loop(lambda carry: (carry[0] < steps) & jnp.any(carry[4]), step, start)
    _, pasts, _, _, _, tokens, logprobs = ended
    whole = (None, None, None)
    return pasts, constrain(tokens, whole), constrain(logprobs, whole)
