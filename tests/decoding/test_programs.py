"""Is a step's work what it must be and no more?"""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np
import pytest

from ste_jax.decoding import attend as attend_module
from ste_jax.decoding.decode_round import NOTHING, empty_control
from ste_jax.decoding.programs import Programs
from tests.compiling import OPTIMIZED
from tests.decoding import small

GROUPS, ROWS, PROMPT, NEW = 2, 3, 32, 24


def programs() -> Programs:
    return Programs(
        small.small_model(), small.one_device(), dtype=jnp.float32, chunk=8, steps=4, as_list=True
    )


@pytest.mark.parametrize(("block", "blocks"), [(24, 1), (7, 4)])
def test_the_caches_are_written_in_place(
    block: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend_module, "PAST_BLOCK", block)
    these = programs()
    lowered = these._decode.__wrapped__.lower(  # type: ignore[attr-defined]
        these._weights,
        prefix=these.prefix(GROUPS, PROMPT),
        pasts=these.pasts(GROUPS, ROWS, NEW),
        control=empty_control(GROUPS, ROWS),
        eos_ids=np.array(small.EOS, np.int32),
    )
    text = lowered.compile(OPTIMIZED).as_text()
    size = rf"(?:{block}|{NEW % block})" if NEW % block else f"{NEW}"
    past = rf"f32\[{GROUPS},{ROWS},2,(?:8,{size}|{size},8)\]"
    of_a_block = 4  # keys and values of 2 layers
    assert len(re.findall(rf"= {past}\S* scatter\(", text)) == of_a_block * blocks
    assert not re.findall(rf"= {past}\S* copy\(", text)
    assert text.count("may-alias") + text.count("must-alias") >= 4


def test_a_round_ends_when_no_row_runs_and_leaves_the_others_alone() -> None:
    these = programs()
    control = empty_control(GROUPS, ROWS)
    control.active[1, 2] = True
    control.budget[1, 2] = 3
    control.filled[1, 2] = 1
    pasts = these.pasts(GROUPS, ROWS, NEW)
    [past], tokens, logprobs = these.decode(
        these.prefix(GROUPS, PROMPT), pasts, control, np.array(small.EOS, np.int32)
    )
    drawn = np.asarray(tokens) != NOTHING
    assert drawn.sum() == 2 and drawn[:2, 1, 2].all()
    assert (np.asarray(logprobs) != 0).sum() == 2
    for layer in past:
        written = np.asarray(layer["v"]).any(axis=(2, 4))
        assert np.argwhere(written).tolist() == [[1, 2, 1], [1, 2, 2]]
