"""How are arrays kept with Orbax and read back, each onto its place on a mesh?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ste_jax.models.parameters import checksum
from ste_jax.system import files


def multiprocessing_options() -> ocp.options.MultiprocessingOptions:
    """The options with which Orbax's own barriers meet where ours do."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(active_processes=set(range(jax.process_count())))


def describe(arrays: Mapping[str, jax.Array]) -> dict[str, dict[str, Any]]:
    """The shape, the type and the checksum of each array, by name. Every process calls it."""
    return {
        name: {
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "checksum": int(checksum(array)),
        }
        for name, array in arrays.items()
    }


def restore_arrays(
    directory: epath.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads some arrays of a saved mapping, each to where its sharding says.

    It waits for no other process. TensorStore's errors, of many types, come out as they are.
    """
    # The handler and not a `Checkpointer`: the latter ends in a barrier, at which the processes
    # that could read would wait for one that could not.
    restored: dict[str, jax.Array] = ocp.PyTreeCheckpointHandler().restore(
        files.absolute(directory),
        args=ocp.args.PyTreeRestore(
            item=dict(wanted),
            restore_args=ocp.checkpoint_utils.construct_restore_args(dict(wanted)),
            partial_restore=True,
        ),
    )
    for name, want in wanted.items():
        got = restored[name]
        if not isinstance(got, jax.Array) or got.shape != want.shape or got.dtype != want.dtype:
            raise ValueError(f"{name} was stored as {np.shape(got)}, not {want.shape}")
    return restored
