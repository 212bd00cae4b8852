"""How does somebody's model become an Orbax checkpoint of ours?"""

from __future__ import annotations

from etils import epath

from ste_jax import checkpoints
from ste_jax.config import MeshKnobs
from ste_jax.errors import RequestError
from ste_jax.opening import locate, open_model, source_fingerprint


def import_model(source: str, checkpoint: str, dtype: str) -> str:
    """Read `source` and save it at `checkpoint`; returns what to print.

    Raises:
      RequestError: the source cannot be read, or the place is taken.
    """
    place = epath.Path(checkpoint)
    if place.exists():
        raise RequestError(f"{checkpoint} is there already; name another place")
    found = locate(source)
    opened = open_model(found, MeshKnobs(), dtype=dtype, param_dtype=dtype)
    checkpoints.save_checkpoint(
        place,
        opened.model,
        tokenizer=opened.tokenizer,
        provenance={
            "source": source,
            "iteration": 0,
            "fingerprint": f"{source_fingerprint(found)}-{dtype}",
        },
    )
    count = opened.model.config.parameter_count()
    return f"{checkpoint}: {count:,} parameters in {dtype}, from {found.name}"
