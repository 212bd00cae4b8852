"""Every family computes what transformers computes: full, padded and packed rows."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.load_weights import load_weights
from ste_jax.parallel.sharding import make_mesh
from tests.models.families import BY_NAME, CASES, FAMILIES, SIZES, make, make_seeing
from tests.models.reference import our_logits, packed_logits, torch_logits

ONE = make_mesh(MeshKnobs(), jax.devices()[:1])
NEAR = 2e-4
"""The largest difference of logits that is owed, in float32."""


def tokens_of(rows: int, time: int = 23) -> np.ndarray:
    """Longer than any window."""
    return np.random.default_rng(0).integers(0, 33, (rows, time))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_full_pass(case, tmp_path: Path) -> None:
    reference = make(case, tmp_path)
    ours = load_weights(tmp_path, ONE)
    tokens = tokens_of(3)
    expected = torch_logits(reference, tokens)
    assert np.abs(expected).max() > 1, "nothing to compare"
    np.testing.assert_allclose(our_logits(ours, tokens), expected, atol=NEAR, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_padded_batches(name: str, tmp_path: Path) -> None:
    reference = make(name, tmp_path)
    ours = load_weights(tmp_path, ONE)
    tokens, lengths = tokens_of(3), [23, 9, 16]
    there = np.arange(23) < np.array(lengths)[:, None]
    with torch.no_grad():
        expected = reference(
            torch.from_numpy(tokens), attention_mask=torch.from_numpy(there.astype(np.int64))
        ).logits.numpy()
    positions = np.broadcast_to(np.arange(23, dtype=np.int32), tokens.shape)
    found = packed_logits(ours, tokens, there.astype(np.int32), positions)
    np.testing.assert_allclose(found[there], expected[there], atol=NEAR, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_segments(name: str, tmp_path: Path) -> None:
    reference = make(name, tmp_path)
    ours = load_weights(tmp_path, ONE)
    tokens, lengths = tokens_of(2, 27), [[12, 1, 9, 5], [3, 24]]
    segments = np.stack([np.repeat(np.arange(len(each)) + 1, each) for each in lengths])
    positions = np.stack([np.concatenate([np.arange(n) for n in each]) for each in lengths])
    found = packed_logits(ours, tokens, segments.astype(np.int32), positions.astype(np.int32))
    for row, each in enumerate(lengths):
        for number in range(1, len(each) + 1):
            mine = segments[row] == number
            alone = torch_logits(reference, tokens[row : row + 1, mine])[0]
            np.testing.assert_allclose(found[row, mine], alone, atol=NEAR, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_strays_no_further_than_the_reference(name: str, tmp_path: Path) -> None:
    # PyTorch's grouped products of bfloat16 want rows of a multiple of 16 bytes.
    sizes = {"vocab_size": 403, "hidden_size": 48, "intermediate_size": 32}
    if "moe_intermediate_size" in BY_NAME[name].changes:
        sizes["moe_intermediate_size"] = 16
    exact = make(name, tmp_path, **sizes)
    tokens = tokens_of(4)
    expected = torch_logits(exact, tokens)
    theirs = torch_logits(exact.to(torch.bfloat16), tokens) - expected
    ours = load_weights(tmp_path, ONE, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    strayed = our_logits(ours, tokens) - expected
    assert np.sqrt(np.mean(strayed**2)) <= np.sqrt(np.mean(theirs**2))
    assert np.abs(strayed).max() <= 1.25 * np.abs(theirs).max()


def test_the_text_model_of_a_gemma_that_sees(tmp_path: Path) -> None:
    reference = make_seeing(tmp_path)
    ours = load_weights(tmp_path, ONE)
    tokens = tokens_of(2)
    np.testing.assert_allclose(
        our_logits(ours, tokens), torch_logits(reference, tokens), atol=NEAR, rtol=0
    )
    assert ours.config.vocab_size == SIZES["vocab_size"]
