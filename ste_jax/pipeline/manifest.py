"""What is fixed when a run begins, and kept when it goes on?"""

from __future__ import annotations

import platform
from typing import Any

import jax

from ste_jax.config import identity
from ste_jax.config.schema import Config, DecodingKnobs
from ste_jax.run.layout import NO_SHAPES, RunDir
from ste_jax.system.errors import RequestError
from ste_jax.system.version import __version__


def manifest_of(config: Config, run: RunDir, new_shapes: bool) -> dict[str, Any]:
    """The manifest of a run that is begun, or taken up where it was left.

    Raises:
      RequestError: the directory holds something that is not a run, or a run of another number of
        shards or, without `new_shapes`, of other shapes.
    """
    shapes = identity.of(config.decoding, without=NO_SHAPES)
    fresh = {
        "name": config.name,
        "iterations": config.iterations,
        "shards": config.pool.shards,
        "shapes": shapes,
        "caps": {},
        "ste_jax": __version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
    }
    if not run.begun():
        # a partial file that a killed first write has left is nobody's work
        if run.root.exists() and any(".partial-" not in each.name for each in run.root.iterdir()):
            raise RequestError(
                f"{run.root} holds something else than a run; name another directory"
            )
        return fresh
    old = run.read_manifest()
    if old["shards"] != config.pool.shards:
        raise RequestError(
            f"{run.root} was begun with pool.shards={old['shards']}, which is fixed; "
            f"set it back or begin a new run"
        )
    asked, begun = (identity.complete(DecodingKnobs, each) for each in (shapes, old["shapes"]))
    changed = [key for key in asked if asked[key] != begun.get(key)]
    if changed and not new_shapes:
        key = changed[0]
        raise RequestError(
            f"{run.root} was begun with decoding.{key}={begun.get(key)}, not {asked[key]}: other "
            f"shapes round otherwise. Set it back, or let what is still to do take the new ones "
            f"with --new-shapes"
        )
    return {**fresh, **old, "shapes": shapes, "iterations": config.iterations}
