"""How is a model kept on disk, so that what is read back is what was written, or is refused?

A model checkpoint is a directory of its own:

    ste_checkpoint.json   the card: model config, every array's shape, type and checksum, provenance
    parameters/           Orbax (OCDBT), each host's shards written by that host
    tokenizer/            the tokenizer's files, chat template among them

The card is written last and is the mark of completeness. On a local disk the whole directory
appears by a rename as well; on `gs://`, which has none, the card is the last object put, and says
in which of two directories the parameters are, so that a new checkpoint is written beside the old.

Arrays are read one at a time, straight onto the mesh that asks for them, and compared with their
checksum: Orbax alone restores a flipped bit without complaint.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from ste_jax.checkpoints.arrays import describe, multiprocessing_options, restore_arrays
from ste_jax.checkpoints.card import (
    CARD,
    PARAMETERS,
    TOKENIZER,
    card_of,
    parameters_directory,
    read_card,
)
from ste_jax.checkpoints.publish import brief, discard, publish, write_failure
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.models.parameters import Parameters, checksum, parameters_of, with_parameters
from ste_jax.parallel.processes import joined
from ste_jax.parallel.sharding import parameter_sharding
from ste_jax.system import files
from ste_jax.system.errors import RequestError, SteError, WorkError

_OTHER_PARAMETERS = "parameters-other"


class SavesItself(Protocol):
    """What a checkpoint needs of a tokenizer."""

    def save(self, directory: epath.Path) -> None:
        """Writes its files into a directory, which it makes."""


def save_checkpoint(
    path: epath.PathLike,
    model: Decoder,
    *,
    tokenizer: SavesItself,
    provenance: Mapping[str, Any],
) -> None:
    """Writes a checkpoint; one that is there already is replaced when the new one is complete.

    Every process calls it. `provenance` is JSON-able: run, iteration, parent, data fingerprint.

    Raises:
      WorkError: it cannot be written (a full disk, no permission). What was there is untouched and
        nothing half-written is left.
      Preempted: asked to stop while waiting for another process; there is the old one or the new.
    """
    final = files.absolute(path)
    remote = files.is_remote(final)
    # The name is one that `files.sweep_partials` knows, and the same on every process.
    building = final if remote else final.with_name(f"{final.name}.partial-checkpoint")
    used = _parameters_in(final) if remote else None
    spare = _OTHER_PARAMETERS if used == PARAMETERS else PARAMETERS
    half_written = building / spare if remote else building
    processes = joined()
    params = parameters_of(model)
    card = card_of(model.config, describe(params), provenance)
    if remote:
        card["directory"] = spare
    complete = False
    try:
        if processes.first:
            files.remove(half_written)
            building.mkdir(parents=True, exist_ok=True)
        processes.barrier(f"checkpoint begun: {final}")
        with ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=multiprocessing_options()),
            multiprocessing_options=multiprocessing_options(),
        ) as checkpointer:
            checkpointer.save(building / spare, args=ocp.args.PyTreeSave(params))
        if processes.first:
            tokenizer.save(building / TOKENIZER)
            files.write_json(building / CARD, card)
            if not remote:
                publish(Path(os.fspath(building)), Path(os.fspath(final)))
            elif used is not None:
                files.remove(building / used)
        complete = True
        processes.barrier(f"checkpoint complete: {final}")
    except Exception as error:  # Orbax and TensorStore raise types of many kinds for a full disk.
        if processes.first and not complete:
            discard(half_written)
        if isinstance(error, SteError):
            raise
        raise WorkError(
            f"could not write the checkpoint {final}: {write_failure(error)}; make room or choose "
            "another place, and run again"
        ) from error


def load_checkpoint(
    path: epath.PathLike, mesh: Mesh, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> Decoder:
    """Reads a checkpoint's model onto `mesh`, whatever mesh and type it was written from.

    Args:
      dtype: what the model computes in.
      param_dtype: what its parameters are cast to.

    Raises:
      RequestError, Preempted: as `restore_parameters`.
    """
    card = read_card(path)
    config = _config_of(path, card)
    values = _restore(path, card, config, mesh, param_dtype)
    return with_parameters(abstract_decoder(config, dtype=dtype, param_dtype=param_dtype), values)


def restore_parameters(path: epath.PathLike, mesh: Mesh, *, dtype: Any = None) -> Parameters:
    """Reads a checkpoint's parameters onto `mesh`, whatever mesh they were written from.

    Every process of the mesh calls it. No host holds more than its own shards of one parameter
    beside what it has read. A checkpoint may be on a local disk or in an object store (`gs://`).

    Args:
      path: the checkpoint: the directory that holds `ste_checkpoint.json`.
      mesh: a mesh with the axes `data`, `fsdp` and `tensor`, as `make_mesh` makes them.
      dtype: what the parameters are cast to; as they were written, if None.

    Returns:
      The arrays by name (`embed` of shape [V, D], `layers.0.q` of shape [D, H, head_dim], ...: what
      `ModelConfig.parameters` declares), each sharded over `mesh` as the rules of
      `ste_jax.parallel.sharding` say.

    Raises:
      RequestError: there is no complete checkpoint, or an array is missing, foreign, of another
        shape than the model's, unreadable, or not what was written; the message names the array.
      Preempted: one of several processes was asked to stop while it waited for another to read.
    """
    card = read_card(path)
    return _restore(path, card, _config_of(path, card), mesh, dtype)


def _config_of(path: epath.PathLike, card: Mapping[str, Any]) -> ModelConfig:
    """The card's model config, checked against the parameters that the card describes."""
    config = ModelConfig.from_dict(card["model"], str(epath.Path(path) / CARD))
    written, declared = card["parameters"], config.parameters()
    for name in sorted(set(declared) ^ set(written)):
        fault = "has no" if name in declared else "has a foreign"
        raise RequestError(f"checkpoint {path} {fault} parameter {name}")
    for name, parameter in declared.items():
        shape = tuple(written[name]["shape"])
        if shape != parameter.shape:
            raise RequestError(
                f"checkpoint {path}: {name} has shape {shape}, its model config makes it "
                f"{parameter.shape}"
            )
    return config


def _restore(
    path: epath.PathLike, card: Mapping[str, Any], config: ModelConfig, mesh: Mesh, dtype: Any
) -> Parameters:
    directory = epath.Path(path) / parameters_directory(card)
    shared = any(device.process_index != jax.process_index() for device in mesh.devices.flat)
    values: Parameters = {}
    for name, parameter in config.parameters().items():
        written = card["parameters"][name]
        wanted = jax.ShapeDtypeStruct(
            parameter.shape,
            jnp.dtype(written["dtype"]),
            sharding=parameter_sharding(parameter.shape, parameter.axes, mesh),
        )
        failure: Exception | None = None
        try:
            read = restore_arrays(directory, {name: wanted})[name]
        except Exception as error:  # TensorStore's errors share no type.
            failure = error
        # All processes sum or none does: no one waits in there for one that could not read.
        read_by = joined().gather(f"read {name}", failure is None) if shared else [failure is None]
        if not all(read_by):
            why = "by another process" if failure is None else f"({brief(failure)})"
            raise RequestError(
                f"checkpoint {path} is damaged: {name} cannot be read {why}; {_REMEDY}"
            ) from failure
        if int(checksum(read)) != written["checksum"]:
            raise RequestError(
                f"checkpoint {path} is damaged: {name} is not what was written (checksum); "
                f"{_REMEDY}"
            )
        values[name] = read if dtype is None else read.astype(dtype)
    return values


_REMEDY = (
    "put a copy of it back; or move it away, and if it is of a run, run that again: it is made anew"
)


def _parameters_in(path: epath.Path) -> str | None:
    """The directory of the parameters in a checkpoint; None if there is no checkpoint."""
    try:
        return parameters_directory(read_card(path))
    except RequestError:
        return None
