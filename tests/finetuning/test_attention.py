"""Attention in blocks is the attention of the model."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ste_jax.config.schema import MeshKnobs
from ste_jax.finetuning import attention
from ste_jax.finetuning.attention import packed_causal
from ste_jax.models.attention import Seen, causal
from ste_jax.models.kernels import PLAIN, Kernels, Splash
from ste_jax.parallel.sharding import make_mesh

T = 22
SEGMENTS = np.array([[1] * 9 + [2] * 4 + [3] * 6 + [0] * 3, [1] * T], np.int32)
POSITIONS = np.array([[*range(9), *range(4), *range(6), 0, 0, 0], [*range(T)]], np.int32)
RNG = np.random.default_rng(0)
Q = RNG.normal(size=(2, T, 6, 8)).astype(np.float32)
K, V = (RNG.normal(size=(2, T, 2, 8)).astype(np.float32) for _ in range(2))


@pytest.mark.parametrize(
    ("smallest", "most", "seen"),
    [
        (4, 8, Seen(0.35)),
        (4, 2, Seen(0.35)),
        (128, 8, Seen(0.35)),
        (4, 8, Seen(0.5, window=3, softcap=2.0)),
        (4, 2, Seen(0.5, window=14)),
    ],
)
def test_it_is_the_models_causal_attention(
    smallest: int, most: int, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK", smallest)
    monkeypatch.setattr(attention, "MOST_BLOCKS", most)
    real = (SEGMENTS > 0)[:, :, None, None]

    def value(attend: attention.Attend) -> tuple[np.ndarray, ...]:
        def total(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = attend(q, k, v, None, seen) * real
            return (out**2).sum(), out

        grads, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(Q, K, V)
        return out, *grads

    ours, theirs = value(packed_causal(SEGMENTS, POSITIONS)), value(causal(SEGMENTS, POSITIONS))
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)
        assert np.isfinite(got).all()


@pytest.mark.parametrize(
    "seen",
    [Seen(64**-0.5), Seen(64**-0.5, window=100), Seen(0.3, softcap=2.0)],
    ids=["plain", "window", "capped"],
)
def test_the_kernel_gives_the_same_and_the_same_gradients(seen: Seen) -> None:
    draw = np.random.default_rng(0)
    time, heads, kv_heads = 256, 4, 2
    q, k, v, weight = (
        jnp.asarray(draw.normal(size=(2, time, n, 64)), jnp.float32)
        for n in (heads, kv_heads, kv_heads, heads)
    )
    lengths = [[100, 90, 66], [256]]
    ids = jnp.asarray([np.repeat(np.arange(len(row)) + 1, row) for row in lengths])
    places = jnp.asarray([np.concatenate([np.arange(n) for n in row]) for row in lengths])

    def loss(kernels: Kernels, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = packed_causal(ids, places, kernels)(*arrays, None, seen)
        return jnp.sum(out * weight), out

    def of(kernels: Kernels) -> Any:
        run = jax.value_and_grad(partial(loss, kernels), argnums=(0, 1, 2), has_aux=True)
        return jax.jit(run)(q, k, v)

    (_, want), wanted = of(PLAIN)
    ran: list[int] = []

    class Counted(Splash):
        def packed(self, q: jax.Array, *arrays: Any) -> jax.Array:
            ran.append(q.shape[1])
            return super().packed(q, *arrays)

    kernels = Kernels(packed=Counted(interpret=True))
    found = [of(kernels)]
    # Heads divided; and more devices than kv heads, which all then have.
    for tensor in (2, 4):
        mesh = make_mesh(MeshKnobs(data=2, fsdp=1, tensor=tensor), jax.devices()[: 2 * tensor])
        with jax.set_mesh(mesh):
            found.append(of(kernels))
    assert set(ran) == {heads, heads // 2}
    for (_, out), gradients in found:
        np.testing.assert_allclose(out, want, atol=2e-5)
        for got, expected in zip(gradients, wanted, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-4)
