"""Token for token, is greedy decoding by the engine what `transformers` generates?

More prompts than slots, of lengths around the prefill chunk and past the windows, so that slots are
filled again while others run, and every answer takes several rounds.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ste_jax.model_io.load_weights import load_weights
from tests.decoding import small
from tests.decoding.small import collect, engine, prompt, request
from tests.models.families import FAMILIES, WINDOW, make
from tests.models.reference import greedy
from tests.models.test_family_decoding import ONE

LENGTHS = (1, 3, 8, 9, 12, 17, 26, 32)
NEW = (5, 20, 11)
SHAPES = {"prompt_buckets": (32,), "new_buckets": (20,), "groups": 2, "group_size": 2}
QUICK = ("llama-3.1", "qwen3", "gemma3")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_greedy_is_what_transformers_generates(name: str, tmp_path: Path) -> None:
    reference = make(name, tmp_path)
    assert reference.dtype == torch.float32
    made = engine(load_weights(tmp_path, ONE), ONE, **SHAPES)
    for length in LENGTHS:
        for new in NEW:
            asked = request(f"{length}/{new}", (0, 1), max_new_tokens=new)
            made.submit(asked, prompt(length, length, letters=30))
    found = collect(made.completions())
    assert max(NEW) > 2 * small.KNOBS.steps_per_round and max(LENGTHS) > WINDOW
    for length in LENGTHS:
        whole = greedy(reference, prompt(length, length, letters=30).tokens, max(NEW), small.EOS)
        for new in NEW:
            want = whole[:new]
            for sample in (0, 1):
                one = found[f"{length}/{new}", sample]
                assert list(one.token_ids) == want
                assert one.finish_reason == ("stop" if want[-1] in small.EOS else "length")
    assert any(len(one.token_ids) == max(NEW) for one in found.values())
