"""The loss is the mean over the targets, and nothing else is computed for it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ste_jax.finetuning import loss
from ste_jax.finetuning.loss import target_scores
from ste_jax.finetuning.objectives import Sft

B, T, C, D, V = 3, 20, 7, 6, 11
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, T, D)).astype(np.float32)
MATRIX = RNG.normal(size=(D, V)).astype(np.float32)
AT = np.stack([RNG.permutation(T)[:C] for _ in range(B)])
TARGETS = RNG.integers(0, V, (B, C))
WEIGHTS = RNG.choice([0.0, 1.0, 2.5], (B, C)).astype(np.float32)


def ours(hidden: Any, matrix: Any) -> tuple[jax.Array, jax.Array]:
    scores = target_scores(lambda h: h @ matrix, hidden, AT, TARGETS)
    batch = {"weights": jnp.asarray(WEIGHTS)}
    # Of totals of 1, a share is the sum.
    share = Sft().share(scores, batch, {"weight": jnp.ones(()), "targets": jnp.ones(())})
    return share.loss, share.measures["token_accuracy"]


def reference() -> tuple[float, int, np.ndarray, np.ndarray]:
    """By torch, over all of `T`: loss, number right, and the gradients of both inputs."""
    hidden, matrix = torch.tensor(HIDDEN, requires_grad=True), torch.tensor(MATRIX)
    matrix.requires_grad_(True)
    logits = torch.einsum("btd,dv->btv", hidden, matrix)
    total, right = torch.zeros(()), 0
    for row in range(B):
        for at, target, weight in zip(AT[row], TARGETS[row], WEIGHTS[row], strict=True):
            one = torch.nn.functional.cross_entropy(logits[row, at], torch.tensor(target))
            total = total + float(weight) * one
            right += int(weight > 0 and int(logits[row, at].argmax()) == target)
    total.backward()
    return float(total.detach()), right, hidden.grad.numpy(), matrix.grad.numpy()


@pytest.mark.parametrize("piece", [512, 7, 3, 1])
def test_it_is_the_weighted_cross_entropy(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "PIECE", piece)
    total, right, hidden_grad, matrix_grad = reference()
    (got, correct), grads = jax.value_and_grad(ours, argnums=(0, 1), has_aux=True)(HIDDEN, MATRIX)
    assert float(got) == pytest.approx(total, rel=1e-5)
    assert int(correct) == right
    np.testing.assert_allclose(grads[0], hidden_grad, atol=1e-5)
    np.testing.assert_allclose(grads[1], matrix_grad, atol=1e-5)


def test_large_logits_do_not_overflow() -> None:
    scores = target_scores(lambda h: 1e4 * h @ MATRIX, jnp.asarray(HIDDEN), AT, TARGETS)
    assert np.isfinite(np.asarray(scores.logprob)).all()


def shapes(jaxpr: Any) -> set[tuple[int, ...]]:
    """Of all intermediate values, those of inner jaxprs too."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {tuple(var.aval.shape) for var in equation.outvars}
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= shapes(inner)
    return found


def test_logits_are_computed_only_where_a_loss_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest() -> int:
        jaxpr = jax.make_jaxpr(jax.value_and_grad(lambda h, m: ours(h, m)[0]))(HIDDEN, MATRIX)
        return max(int(np.prod(s)) for s in shapes(jaxpr.jaxpr) if s and s[-1] == V)

    assert largest() == B * C * V
    monkeypatch.setattr(loss, "PIECE", 2)
    assert largest() == B * 2 * V
