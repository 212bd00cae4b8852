"""How is a model of another format saved as an Orbax checkpoint of ours?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from ste_jax.checkpoints.checkpoint import save_checkpoint
from ste_jax.checkpoints.incremental import checkpoint_in_parts
from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.load_weights import load_parameter, open_weights
from ste_jax.model_io.open_model import check_vocabulary, open_model
from ste_jax.model_io.sources import Source
from ste_jax.models.config import ModelConfig
from ste_jax.models.parameters import Parameters
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system import files, preemption, progress
from ste_jax.tokenization.load import load_tokenizer

PART_BYTES = 1 << 28
"""Parameters are written together up to this size, larger ones alone."""


def write_checkpoint(
    source: Source,
    place: epath.Path,
    mesh: MeshKnobs,
    dtype: str,
    provenance: Mapping[str, Any],
) -> ModelConfig:
    """Save a model as a checkpoint; returns its config. Every process calls it.

    A single process reads the files part by part, and shows how many bytes are written. Several
    processes hold a model together, each the shards of its own devices.

    Raises:
      RequestError: the source cannot be read; names the file or tensor.
      WorkError: it cannot be written.
      Preempted: asked to stop; the same call goes on.
    """
    if source.kind == "checkpoint" or jax.process_count() > 1 or files.is_remote(place):
        opened = open_model(source, mesh, dtype=dtype, param_dtype=dtype)
        save_checkpoint(place, opened.model, tokenizer=opened.tokenizer, provenance=provenance)
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
        with progress.work(f"import {source.name}", total, "bytes", done=done) as shown:
            part: Parameters = {}
            for path in missing:
                preemption.poll()
                part[path] = load_parameter(file, path, here, dtype)
                if path == missing[-1] or sum(size[each] for each in part) >= PART_BYTES:
                    writer.add(part)
                    shown.add(sum(size[each] for each in part))
                    part = {}
        writer.finish(tokenizer)
    return file.config
