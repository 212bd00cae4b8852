"""How does somebody's model become an Orbax checkpoint of ours?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from tqdm import tqdm

from ste_jax import checkpoints, files, judge_card, preemption
from ste_jax.checkpoint_parts import building_at, checkpoint_in_parts
from ste_jax.config import MeshKnobs
from ste_jax.errors import RequestError
from ste_jax.models.config import ModelConfig
from ste_jax.models.load import load_parameter, open_weights
from ste_jax.models.sources import Source
from ste_jax.opening import check_vocabulary, locate, open_model, source_fingerprint
from ste_jax.parameters import Parameters
from ste_jax.sharding import make_mesh
from ste_jax.tokenizers import load_tokenizer

PART_BYTES = 1 << 28
"""Parameters are written together up to this size, larger ones alone."""


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
    asked = judge_card.of_source(found)
    if asked is not None:
        provenance["judge"] = judge_card.to_dict(asked)
    # what writes part by part holds the place itself
    whole = found.kind == "checkpoint" and not files.is_remote(place)
    with building_at(place) if whole else contextlib.nullcontext():
        if whole and place.exists():  # another command may have come between
            raise RequestError(f"{checkpoint} is there already; name another place")
        config = write_checkpoint(found, place, MeshKnobs(), dtype, provenance)
    return f"{checkpoint}: {config.parameter_count():,} parameters in {dtype}, from {found.name}"


def write_checkpoint(
    source: Source,
    place: epath.Path,
    mesh: MeshKnobs,
    dtype: str,
    provenance: Mapping[str, Any],
    barrier: checkpoints.Barrier = checkpoints.all_processes,
) -> ModelConfig:
    """Save a model as a checkpoint; returns its config. Every process calls it.

    A process that is alone reads somebody's files part by part, with a bar of the bytes. Several
    hold a model together, each what lies on its own devices.

    Raises:
      RequestError: the source cannot be read; names the file or tensor.
      WorkError: it cannot be written.
      Preempted: asked to stop; the same call goes on.
    """
    if source.kind == "checkpoint" or jax.process_count() > 1 or files.is_remote(place):
        opened = open_model(source, mesh, dtype=dtype, param_dtype=dtype)
        checkpoints.save_checkpoint(
            place,
            opened.model,
            tokenizer=opened.tokenizer,
            provenance=provenance,
            barrier=barrier,
        )
        return opened.model.config
    file, tokenizer = open_weights(source), load_tokenizer(str(source.path))
    check_vocabulary(tokenizer, file.config, str(source.path))
    size = {
        path: math.prod(one.shape) * jnp.dtype(dtype).itemsize
        for path, one in file.config.parameters().items()
    }
    here, total = make_mesh(mesh), sum(size.values())
    with checkpoint_in_parts(place, file.config, provenance) as writer:
        missing = writer.missing
        done = total - sum(size[path] for path in missing)
        with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc="import") as bar:
            part: Parameters = {}
            for path in missing:
                preemption.poll()
                part[path] = load_parameter(file, path, here, dtype)
                if path == missing[-1] or sum(size[each] for each in part) >= PART_BYTES:
                    writer.add(part)
                    bar.update(sum(size[each] for each in part))
                    part = {}
        writer.finish(tokenizer)
    return file.config
