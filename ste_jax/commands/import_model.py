"""How does somebody's model become a checkpoint of one's own?"""

from __future__ import annotations

import contextlib
from typing import Any

from etils import epath

from ste_jax.checkpoints.incremental import building_at
from ste_jax.config.schema import MeshKnobs
from ste_jax.errors import RequestError
from ste_jax.model_io.import_weights import write_checkpoint
from ste_jax.model_io.judge_memory import remembered
from ste_jax.model_io.open_model import source_fingerprint
from ste_jax.run.best import locate
from ste_jax.stages import judge_card
from ste_jax.system import files


def import_model(source: str, checkpoint: str, dtype: str) -> str:
    """Read `source` and save it at `checkpoint`; returns what to print. Killed, it goes on.

    Raises:
      RequestError: the source cannot be read, or the place is taken.
      Preempted: asked to stop.
    """
    place = epath.Path(checkpoint)
    if place.exists():
        raise RequestError(f"{checkpoint} is there already; name another place")
    found = locate(source)
    provenance: dict[str, Any] = {
        "source": source,
        "iteration": 0,
        "fingerprint": f"{source_fingerprint(found)}-{dtype}",
    }
    asked = remembered(found)
    if asked is not None:
        provenance["judge"] = judge_card.to_dict(asked)
    # what writes part by part holds the place itself
    whole = found.kind == "checkpoint" and not files.is_remote(place)
    with building_at(place) if whole else contextlib.nullcontext():
        if whole and place.exists():  # another command may have come between
            raise RequestError(f"{checkpoint} is there already; name another place")
        config = write_checkpoint(found, place, MeshKnobs(), dtype, provenance)
    return f"{checkpoint}: {config.parameter_count():,} parameters in {dtype}, from {found.name}"
