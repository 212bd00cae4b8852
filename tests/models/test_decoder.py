"""The decoder computes what transformers computes, however the work is cut."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ste_jax.config.schema import MeshKnobs
from ste_jax.models.attention import Part, attention, causal
from ste_jax.models.config import LayerKind, ModelConfig, RopeScaling
from ste_jax.models.decoder import Decoder, abstract_decoder, unstack
from ste_jax.models.rotary import rotary_frequencies
from ste_jax.parallel.sharding import make_mesh, state_sharding
from tests.models.reference import our_logits, packed_logits, random_decoder

CONFIG = ModelConfig(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=28,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    max_position=64,
)
ONE = make_mesh(MeshKnobs(), jax.devices()[:1])


@pytest.fixture(scope="module")
def model() -> Decoder:
    return random_decoder(CONFIG)


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 37, (3, 19))


def test_llama3_frequencies_keep_scale_and_mix() -> None:
    scaling = RopeScaling(kind="llama3", factor=8.0, original_max_position=512)
    plain = rotary_frequencies(LayerKind(rope_theta=5e5), 64)
    ratio = rotary_frequencies(LayerKind(rope_theta=5e5, rope_scaling=scaling), 64) / plain
    assert ratio[0] == 1.0
    np.testing.assert_allclose(ratio[-1], 1 / 8, rtol=1e-6)
    assert ((ratio > 0.13) & (ratio < 0.99)).any(), "no frequency lies between"


def test_remat_and_unstacking_change_nothing(model: Decoder, tokens: np.ndarray) -> None:
    expected = our_logits(model, tokens)
    np.testing.assert_allclose(our_logits(model, tokens, remat=True), expected, atol=1e-5)
    np.testing.assert_allclose(our_logits(unstack(model), tokens), expected, atol=1e-5)


def test_unstacking_leaves_the_original_as_it_is(model: Decoder) -> None:
    loose = unstack(model)
    assert set(model.layers[0]) == set(loose.layers[0])
    assert model.layers[0]["q"].get_value().shape == (3, 24, 6, 8)
    assert loose.layers[0]["q"].get_value().shape == (6, 8, 24)  # transposed, see `unstack`
    assert loose.layers[0]["o"].get_value().shape == (24, 6, 8)
    assert loose.embed.get_value() is model.embed.get_value()


def test_packed_and_padded_rows_equal_one_by_one(model: Decoder, tokens: np.ndarray) -> None:
    lengths = [[4, 9, 3], [19], [1, 2]]
    segments = np.zeros_like(tokens, np.int32)
    positions = np.zeros_like(tokens, np.int32)
    for row, row_lengths in enumerate(lengths):
        at = 0
        for number, length in enumerate(row_lengths, start=1):
            segments[row, at : at + length] = number
            positions[row, at : at + length] = np.arange(length)
            at += length
    packed = packed_logits(model, tokens, segments, positions)
    assert np.isfinite(packed).all()
    for row, row_lengths in enumerate(lengths):
        at = 0
        for length in row_lengths:
            alone = np.zeros((1, tokens.shape[1]), np.int32)
            alone[0, :length] = tokens[row, at : at + length]
            logits = our_logits(model, alone)[0, :length]
            np.testing.assert_allclose(packed[row, at : at + length], logits, atol=1e-5)
            at += length


@pytest.mark.parametrize("loose", [False, True])
def test_prefill_and_cached_steps_equal_the_full_pass(
    model: Decoder, tokens: np.ndarray, loose: bool
) -> None:
    full = our_logits(model, tokens)
    graph, state = nnx.split(unstack(model) if loose else model)
    batch, time = tokens.shape
    prompt = 7
    at = jnp.broadcast_to(jnp.arange(prompt), (batch, prompt))

    @jax.jit
    def prefill(state, tokens):
        model = nnx.merge(graph, state)
        hidden, new = model(tokens, at, causal(jnp.ones_like(at), at))

        def longer(x):  # [..., B, T, K, d]
            return jnp.pad(x, [*[(0, 0)] * (x.ndim - 3), (0, time - prompt), (0, 0), (0, 0)])

        return model.logits(hidden), jax.tree.map(longer, new)

    @jax.jit
    def decode(state, tokens, step, cache):
        model = nnx.merge(graph, state)
        seen = (jnp.arange(time) < step)[None, None, :]

        def attend(q, k, v, layer_cache, how):
            own = Part(k, v, jnp.ones((1, 1, 1), bool))
            return attention(q, [Part(*layer_cache, seen), own], how)

        hidden, new = model(tokens, jnp.full((batch, 1), step), attend, cache)
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=step, axis=-3)
        return model.logits(hidden)[:, 0], jax.tree.map(write, cache, new)

    logits, cache = prefill(state, jnp.asarray(tokens[:, :prompt]))
    np.testing.assert_allclose(logits, full[:, :prompt], atol=1e-5)
    for step in range(prompt, time):
        logits, cache = decode(state, tokens[:, step : step + 1], step, cache)
        np.testing.assert_allclose(logits, full[:, step], atol=1e-5)


@pytest.mark.parametrize(
    ("knobs", "in_context"),
    [
        (MeshKnobs(data=8, fsdp=1), True),
        (MeshKnobs(fsdp=8), True),
        (MeshKnobs(fsdp=1, tensor=8), True),
        (MeshKnobs(data=2, fsdp=2, tensor=2), True),
        (MeshKnobs(data=2, fsdp=2, tensor=2), False),
    ],
    ids=["data", "fsdp", "tensor", "all", "all-unconstrained"],
)
def test_logits_and_gradients_are_the_same_on_any_mesh(
    model: Decoder, knobs: MeshKnobs, in_context: bool
) -> None:
    graph, state = nnx.split(model)
    rng = np.random.default_rng(1)
    batch = jnp.asarray(rng.integers(0, 37, (8, 11)))
    positions = jnp.broadcast_to(jnp.arange(11), (8, 11))
    segments = jnp.where(positions < 9, 1, 0)

    def run(state: nnx.State, tokens: jax.Array) -> tuple[jax.Array, nnx.State]:
        def loss(state: nnx.State) -> tuple[jax.Array, jax.Array]:
            model = nnx.merge(graph, state)
            logits = model.logits(
                model(tokens, positions, causal(segments, positions), remat=True)[0]
            )
            return jnp.mean(jax.nn.log_softmax(logits)[:, :9, 5]), logits

        gradients, logits = jax.grad(loss, has_aux=True)(state)
        return logits, gradients

    expected = jax.jit(run)(state, batch)
    mesh = make_mesh(knobs)
    placed = jax.device_put(state, state_sharding(state, mesh))
    if in_context:
        with jax.set_mesh(mesh):
            found = jax.jit(run)(placed, batch)
    else:
        found = jax.jit(run)(placed, batch)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_every_layer_sees_its_own_cache(model: Decoder, tokens: np.ndarray) -> None:
    graph, state = nnx.split(model)

    def attend(q, k, v, layer_cache, seen):
        return layer_cache["shift"] + q

    @jax.jit
    def run(state, shifts):
        model = nnx.merge(graph, state)
        return model(tokens, jnp.zeros(tokens.shape, int), attend, [{"shift": shifts}])[0]

    same = run(state, jnp.zeros(3))
    for layer in range(3):
        assert not np.allclose(run(state, jnp.zeros(3).at[layer].set(1.0)), same)
    swapped = [run(state, jnp.array(shifts)) for shifts in ([1.0, 2.0, 0.0], [2.0, 1.0, 0.0])]
    assert not np.allclose(*swapped)


def test_bfloat16_keeps_norms_softmax_and_logits_in_float32() -> None:
    model = random_decoder(CONFIG, dtype=jnp.bfloat16)
    wide = random_decoder(CONFIG)
    tokens = np.arange(12).reshape(1, 12)
    logits = our_logits(model, tokens)
    assert logits.dtype == np.float32
    # Eight bits of mantissa through three layers: near, and not equal.
    assert 0 < np.abs(logits - our_logits(wide, tokens)).max() < 0.1
    assert model.embed.get_value().dtype == jnp.float32


def test_the_count_is_that_of_the_arrays_and_nothing_is_allocated() -> None:
    large = dataclasses.replace(CONFIG, vocab_size=128256, hidden_size=8192, num_layers=80)
    _, state = nnx.split(abstract_decoder(large, param_dtype=jnp.bfloat16))
    leaves = jax.tree.leaves(state)
    assert sum(leaf.size for leaf in leaves) == large.parameter_count()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def test_flops_leave_out_the_lookup_only() -> None:
    tied = dataclasses.replace(CONFIG, tie_embeddings=True)
    assert CONFIG.flops_per_token == tied.flops_per_token == 2 * tied.parameter_count()
