"""What does a round of decoding compute on the device?

A round is a few steps; in each, every row that runs feeds its last token and draws the next. The
host says before a round what each row is (`Control`), and reads after it what was drawn.

Shapes as in `programs`; `B = G * N` rows. All that a step changes is in `State`, which a compiled
loop passes from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ste_jax.decoding.attend import decode_attend
from ste_jax.decoding.caches import Cache, keys_transposed, windows_of
from ste_jax.decoding.sampling import row_keys, sample
from ste_jax.models.decoder import Decoder, KeysValues
from ste_jax.models.kernels import Kernels
from ste_jax.parallel.sharding import constrain

NOTHING = -1
"""In place of a token: the row was not running at that step."""
NOT_FINITE = -2
"""In place of a token: the row's logits were not finite."""

_NOWHERE = 2**30
"""A place behind the end of every cache: what is written there is dropped."""


class Control(NamedTuple):
    """What the host says about every row of a shape before a round: arrays [G,N] unless said."""

    token: np.ndarray[Any, Any]
    """The token to be fed next."""
    filled: np.ndarray[Any, Any]
    """How many tokens the row has fed so far: its place in what it has written."""
    active: np.ndarray[Any, Any]
    budget: np.ndarray[Any, Any]
    """The value of `filled` at which the row ends."""
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


def empty_control(groups: int, rows: int) -> Control:
    """The `Control` of a shape in which no row runs."""
    return Control(
        token=np.zeros((groups, rows), np.int32),
        filled=np.zeros((groups, rows), np.int32),
        active=np.zeros((groups, rows), np.bool_),
        budget=np.zeros((groups, rows), np.int32),
        prefix_length=np.zeros(groups, np.int32),
        temperature=np.zeros((groups, rows), np.float32),
        top_k=np.zeros((groups, rows), np.int32),
        top_p=np.ones((groups, rows), np.float32),
        min_p=np.zeros((groups, rows), np.float32),
        stop_at_eos=np.zeros((groups, rows), np.bool_),
        seed=np.zeros((groups, rows, 2), np.uint32),
        row_id=np.zeros((groups, rows, 2), np.uint32),
        sample=np.zeros((groups, rows), np.int32),
    )


class State(NamedTuple):
    """What a step takes over from the one before."""

    steps_done: Any
    pasts: list[Cache]
    """What the rows have written, block after block; see `Programs.pasts`."""
    token: Any
    """[G,N]: the token that each row feeds next."""
    filled: Any
    """[G,N]: how many tokens each row has fed."""
    active: Any
    """[G,N]: which rows still run."""
    tokens: Any
    """[steps,G,N]: what was drawn, `NOTHING` or `NOT_FINITE`."""
    logprobs: Any
    """[steps,G,N], 0 where no token was drawn."""


def decode(
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
    """Runs up to `steps` steps, fewer where no row is left running.

    `control` is a `Control` of traced arrays. Returns `pasts` with what was written, and the tokens
    and their log-probabilities, [steps,G,N] both.
    """
    model = model_of(weights)
    groups, rows = control.token.shape
    transposed = keys_transposed(kernels, stacked)
    keys, batch = _keys(control), groups * rows
    group_of, row_of = jnp.divmod(jnp.arange(batch), rows)
    windows = windows_of(model.config, stacked=stacked)

    def step(state: State) -> State:
        attend = decode_attend(
            groups, control.prefix_length, state.filled, kernels, keys_transposed=transposed
        )
        positions = (control.prefix_length[:, None] + state.filled).reshape(batch, 1)
        positions = constrain(positions, ("batch", None))
        cache = _seen_by_layer(prefix, state.pasts)
        hidden, new = model(state.token.reshape(batch, 1), positions, attend, cache)
        drawn, logprob = _draw(model, hidden, keys, control, state, columns=transposed)
        finite = jnp.isfinite(logprob)
        shown = jnp.where(state.active, jnp.where(finite, drawn, NOT_FINITE), NOTHING)
        tokens = state.tokens.at[state.steps_done].set(shown)
        logprobs = state.logprobs.at[state.steps_done].set(
            jnp.where(state.active & finite, logprob, 0.0)
        )
        # What is not finite must not stay behind: where masked it is multiplied by zero. And since
        # the place then depends on the logits, the past is read before it is written, which lets
        # the compiler write into it: else it copies all of it at every step.
        running = state.active & finite
        where = _Where(group_of, row_of, state.filled, running, stacked, transposed)
        written = _write(state.pasts, new, where, windows)
        filled = state.filled + state.active
        ended = jnp.any(drawn[..., None] == eos_ids, axis=-1) & control.stop_at_eos
        token = jnp.where(state.active, drawn, state.token)
        active = state.active & ~ended & finite & (filled < control.budget)
        return State(state.steps_done + 1, written, token, filled, active, tokens, logprobs)

    ended = jax.lax.while_loop(
        lambda state: (state.steps_done < steps) & jnp.any(state.active),
        step,
        _first_state(control, pasts, steps),
    )
    whole = (None, None, None)
    return ended.pasts, constrain(ended.tokens, whole), constrain(ended.logprobs, whole)


def _keys(control: Any) -> jax.Array:
    """The random key of each of the B rows."""
    batch = control.token.size
    return row_keys(
        control.seed.reshape(batch, 2), control.row_id.reshape(batch, 2), control.sample.reshape(-1)
    )


def _first_state(control: Any, pasts: list[Cache], steps: int) -> State:
    """The state before the first step."""
    return State(
        steps_done=0,
        pasts=pasts,
        token=control.token,
        filled=control.filled,
        active=control.active,
        tokens=jnp.full((steps, *control.token.shape), NOTHING, jnp.int32),
        logprobs=jnp.zeros((steps, *control.token.shape), jnp.float32),
    )


def _seen_by_layer(prefix: Cache, pasts: list[Cache]) -> list[dict[str, Any]]:
    """What each layer's attention sees, as `decode_attend` takes it."""
    by_layer = [[block for block in blocks if block] for blocks in zip(*pasts, strict=True)]
    return [{**one, "pasts": blocks} for one, blocks in zip(prefix, by_layer, strict=True)]


def _draw(
    model: Decoder, hidden: jax.Array, keys: jax.Array, control: Any, state: State, *, columns: bool
) -> tuple[jax.Array, jax.Array]:
    """The next token of each row after `hidden` [B,1,D], and its log-probability: [G,N] both.

    `keys` [B] and `columns` as `sampling.sample` takes them; a row that does not run is greedy.
    """
    place = state.filled.reshape(-1)
    # The matrix product is divided by vocabulary, what sampling sums over it by rows; nothing
    # before or after is to be divided so.
    logits = constrain(model.logits(hidden[:, 0]), ("batch", "vocab"))
    drawn, logprob = sample(
        constrain(logits, ("rows", "vocab")),
        jax.vmap(jax.random.fold_in)(keys, place),
        jnp.where(state.active, control.temperature, 0.0).reshape(-1),
        control.top_k.reshape(-1),
        control.top_p.reshape(-1),
        control.min_p.reshape(-1),
        columns=columns,
    )
    shape = control.token.shape
    return (
        constrain(drawn.reshape(shape), ("batch", None)),
        constrain(logprob.reshape(shape), ("batch", None)),
    )


class _Where(NamedTuple):
    """Where each row writes its new token."""

    group_of: jax.Array
    """[B]"""
    row_of: jax.Array
    """[B]: the row's number in its group."""
    filled: jax.Array
    """[G,N]: the token's place in what the row has written."""
    running: jax.Array
    """[G,N]: which rows write at all."""
    stacked: bool
    keys_transposed: bool


def _write(
    pasts: list[Cache], new: KeysValues, where: _Where, windows: list[int | None]
) -> list[Cache]:
    """`pasts` with the new tokens' keys and values, written into the blocks that the rows have
    reached."""
    with jax.named_scope("write"):
        return [
            [
                _write_block(index, block, first, of_layer, window, where) if block else block
                for block, first, of_layer, window in zip(
                    layers, pasts[0], new, windows, strict=True
                )
            ]
            for index, layers in enumerate(pasts)
        ]


def _write_block(
    index: int,
    block: dict[str, Any],
    first: dict[str, Any],
    new: tuple[jax.Array, jax.Array],
    window: int | None,
    where: _Where,
) -> dict[str, Any]:
    """Block number `index` of a layer (or of a group of them), whose first block is `first`."""
    size = block["v"].shape[-2]
    at = where.filled % size if window else where.filled - index * first["v"].shape[-2]
    here = where.running & (at >= 0) & (at < size)
    place = jnp.where(here, at, _NOWHERE).reshape(-1)
    new_k, new_v = (x.squeeze(-3) for x in new)
    # The layers' numbers stand among the indices: as a part of what is written at each, XLA on TPU
    # turns all of the past to have the layers beside the head, and back.
    layers = (jnp.arange(block["v"].shape[0])[:, None],) if where.stacked else ()
    row = (*layers, where.group_of, where.row_of)
    put = {"mode": "drop", "unique_indices": True}
    every = slice(None)
    key = (every, place) if where.keys_transposed else (place,)
    return {
        "k": block["k"].at[(*row, every, *key)].set(new_k, **put),
        "v": block["v"].at[(*row, every, place)].set(new_v, **put),
    }
