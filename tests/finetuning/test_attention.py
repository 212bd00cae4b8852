"""Attention in blocks is the attention of the model."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ste_jax.finetuning import attention
from ste_jax.finetuning.attention import packed_causal
from ste_jax.models.attention import Seen, causal

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
