"""A training state is written while training goes on."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh

from ste_jax.config.schema import MeshKnobs
from ste_jax.finetuning.train_step import abstract_state, initial_state
from ste_jax.finetuning.training_state import StateStore
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.sharding import make_mesh
from tests.finetuning.small import CONFIG, KNOBS, ONE, small_model

TWO = make_mesh(MeshKnobs(fsdp=2), jax.devices()[:2])


@pytest.mark.parametrize("mesh", [ONE, TWO], ids=["one device", "two ways"])
@pytest.mark.parametrize("reserved", [True, False])
def test_what_is_saved_is_what_was_there_at_the_call(
    reserved: bool, mesh: Mesh, tmp_path: Path
) -> None:
    # The writing goes on behind, while steps donate the arrays and the curve grows.
    like = abstract_state(CONFIG, KNOBS, 10, mesh, param_dtype=np.float32)
    state = initial_state(parameters_of(small_model()), like, KNOBS, 10)
    before = [np.array(leaf) for leaf in jax.tree.leaves(state)]
    step = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 7, s), donate_argnums=0)
    step = step.lower(state).compile()  # type: ignore[assignment]
    curve = [{"step": 1}]
    with StateStore(epath.Path(tmp_path)) as store:
        if reserved:
            store.reserve(state)
        used = memory_of(jax.live_arrays())
        for number in (1, 2):
            store.save(number, state, curve)
            state = step(state)
            curve.append({"step": number + 1})
            # What was there is written over, and nothing but that: no memory is asked for.
            assert not reserved or memory_of(jax.live_arrays()) <= used
        store.wait()
        found = store.restore(like)
    assert found is not None
    assert found[1] == [{"step": 1}, {"step": 2}]
    after = [leaf + np.asarray(7, leaf.dtype) for leaf in before]
    assert all(map(np.array_equal, jax.tree.leaves(found[0]), after))


def memory_of(arrays: list[jax.Array]) -> set[int]:
    """Where they lie, but for what is too small to matter."""
    parts = (part.data for array in arrays for part in array.addressable_shards)
    return {part.unsafe_buffer_pointer() for part in parts if part.nbytes > 1000}
