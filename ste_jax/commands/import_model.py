"""How does a user's model become a checkpoint (`ste import`)?"""

from __future__ import annotations

import contextlib
from typing import Any

from etils import epath

from ste_jax.checkpoints.incremental import building_at
from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.import_weights import write_checkpoint
from ste_jax.model_io.open_model import source_fingerprint
from ste_jax.model_io.stored_judge_card import stored_judge_card
from ste_jax.run.best import locate_and_say
from ste_jax.stages import judge_card
from ste_jax.system import files
from ste_jax.system.errors import RequestError


def import_model(source: str, checkpoint: str, dtype: str) -> str:
    """Read `source` and save it at `checkpoint`; returns what to print. Killed, it goes on.

    Raises:
      RequestError: the source cannot be read, or the place is taken.
      Preempted: asked to stop.
    """
    place = epath.Path(checkpoint)
    if place.exists():
        raise RequestError(f"{checkpoint} is there already; name another place")
    found = locate_and_say(source)
    provenance: dict[str, Any] = {
        "source": source,
        "iteration": 0,
        "fingerprint": f"{source_fingerprint(found)}-{dtype}",
    }
    asked = stored_judge_card(found)
    if asked is not None:
        provenance["judge"] = judge_card.to_dict(asked)
    # a checkpoint that is written part by part is locked there
    whole = found.kind == "checkpoint" and not files.is_remote(place)
    with building_at(place) if whole else contextlib.nullcontext():
        if whole and place.exists():  # another command may have written it meanwhile
            raise RequestError(f"{checkpoint} is there already; name another place")
        config = write_checkpoint(found, place, MeshKnobs(), dtype, provenance)
    return f"{checkpoint}: {config.parameter_count():,} parameters in {dtype}, from {found.name}"
