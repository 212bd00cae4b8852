"""How does a model lie on disk, so that what is read back is what was written, or refused?

A model checkpoint is a directory of its own:

    ste_checkpoint.json   the card: model config, every array's shape, type and checksum, provenance
    parameters/           Orbax (OCDBT), each host's shards written by that host
    tokenizer/            the tokenizer's files, chat template among them

The card is written last and is the mark of completeness. On a local disk the whole directory
appears by a rename as well; on `gs://`, which has none, the card is the last object put, and says
in which of two directories the parameters lie, so that a new checkpoint is written beside the old.

Arrays are read one at a time, straight onto the mesh that asks for them, and compared with their
checksum: Orbax alone restores a flipped bit without complaint.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ste_jax import __version__
from ste_jax.errors import RequestError, SteError, WorkError
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.models.parameters import Parameters, checksum, parameters_of, with_parameters
from ste_jax.parallel.sharding import parameter_sharding
from ste_jax.system import files

CARD = "ste_checkpoint.json"
PARAMETERS, OTHER_PARAMETERS = "parameters", "parameters-other"
TOKENIZER = "tokenizer"
_FORMAT = 2

Barrier = Callable[[str], None]
"""Waits until every process is at the place of that name."""


class SavesItself(Protocol):
    """A tokenizer, as far as a checkpoint needs to know it."""

    def save(self, directory: epath.Path) -> None:
        """Writes its files into a directory, which it makes."""


def all_processes(name: str) -> None:
    """A `Barrier` over the coordination service: with a time-out, and not inside a collective."""
    if jax.process_count() > 1:
        ocp.multihost.sync_global_processes(name, processes=set(range(jax.process_count())))


def everywhere(good: bool) -> bool:
    """Whether every process says yes. All call it."""
    if jax.process_count() == 1:
        return good
    all_processes("everywhere")
    return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))


def multiprocessing_options() -> ocp.options.MultiprocessingOptions:
    """Makes Orbax's own barriers meet where ours do."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(active_processes=set(range(jax.process_count())))


def is_checkpoint(path: epath.PathLike) -> bool:
    """Whether a complete checkpoint of ours lies there."""
    try:
        read_card(path)
    except RequestError:
        return False
    return True


def read_card(path: epath.PathLike) -> dict[str, Any]:
    """The card: `model` (of `ModelConfig.to_dict`), `parameters`, `provenance`, `ste_jax`.

    Raises:
      RequestError: no complete checkpoint of ours lies there.
    """
    place = epath.Path(path) / CARD
    try:
        card = json.loads(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(
            f"{path} is not a complete checkpoint: it has no {CARD}, which is written last"
        ) from error
    except ValueError as error:
        raise RequestError(f"{place} is damaged: {error}") from error
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        told = card.get("format") if isinstance(card, dict) else None
        raise RequestError(f"{place}: format is {told!r}, this version reads {_FORMAT}")
    missing = {"model", "parameters", "provenance"} - set(card)
    if missing:
        raise RequestError(f"{place} is damaged: {', '.join(sorted(missing))} missing")
    return card


def card_of(
    config: ModelConfig, described: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The card of a model whose arrays are `described`."""
    return {
        "format": _FORMAT,
        "ste_jax": __version__,
        "model": config.to_dict(),
        "parameters": dict(described),
        "provenance": dict(provenance),
    }


def save_checkpoint(
    path: epath.PathLike,
    model: Decoder,
    *,
    tokenizer: SavesItself,
    provenance: Mapping[str, Any],
    barrier: Barrier = all_processes,
) -> None:
    """Writes a checkpoint; one that lies there already is replaced when the new one is complete.

    Every process calls it. `provenance` is JSON-able: run, iteration, parent, data fingerprint.

    Raises:
      WorkError: it cannot be written (a full disk, no permission). What lay there is untouched and
        nothing half-written is left.
    """
    final = files.absolute(path)
    remote = files.is_remote(final)
    # The name is one that `files.sweep_partials` knows, and the same on every process.
    building = final if remote else final.with_name(f"{final.name}.partial-checkpoint")
    used = _parameters_in(final) if remote else None
    spare = OTHER_PARAMETERS if used == PARAMETERS else PARAMETERS
    half_written = building / spare if remote else building
    first = jax.process_index() == 0
    params = parameters_of(model)
    card = card_of(model.config, describe(params), provenance)
    if remote:
        card["directory"] = spare
    complete = False
    try:
        if first:
            _remove_tree(half_written)
            building.mkdir(parents=True, exist_ok=True)
        barrier(f"checkpoint begun: {final}")
        with ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=multiprocessing_options()),
            multiprocessing_options=multiprocessing_options(),
        ) as checkpointer:
            checkpointer.save(building / spare, args=ocp.args.PyTreeSave(params))
        if first:
            tokenizer.save(building / TOKENIZER)
            files.write_json(building / CARD, card)
            if not remote:
                publish(Path(os.fspath(building)), Path(os.fspath(final)))
            elif used is not None:
                _remove_tree(building / used)
        complete = True
        barrier(f"checkpoint complete: {final}")
    except Exception as error:  # Orbax and TensorStore raise types of many kinds for a full disk.
        if first and not complete:
            discard(half_written)
        if isinstance(error, SteError):
            raise
        raise WorkError(
            f"could not write the checkpoint {final}: {write_failure(error)}; make room or choose "
            "another place, and run again"
        ) from error


def load_checkpoint(
    path: epath.PathLike,
    mesh: Mesh,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    expect: ModelConfig | None = None,
) -> Decoder:
    """Reads a checkpoint onto `mesh`, whatever mesh and type it was written from.

    Args:
      dtype: what the model computes in.
      param_dtype: what its parameters are cast to.
      expect: the model that it must be one of.

    Raises:
      RequestError: no complete checkpoint lies there, an array is missing or not what was written,
        or it is of another model than `expect`; the message names the array or the field.
    """
    card = read_card(path)
    try:
        config = ModelConfig.from_dict(card["model"])
    except RequestError as error:
        raise RequestError(f"checkpoint {path}: {error}") from error
    if expect is not None:
        require_same_model(path, config, expect)
    stored = card["parameters"]
    declared = config.parameters()
    for name in sorted(set(declared) ^ set(stored)):
        told = "has no" if name in declared else "has a foreign"
        raise RequestError(f"checkpoint {path} {told} parameter {name}")

    directory = epath.Path(path) / _directory_of(card)
    shared = any(device.process_index != jax.process_index() for device in mesh.devices.flat)
    values: Parameters = {}
    for name, parameter in declared.items():
        if tuple(stored[name]["shape"]) != parameter.shape:
            raise RequestError(
                f"checkpoint {path}: {name} has shape {tuple(stored[name]['shape'])}, its model "
                f"config makes it {parameter.shape}"
            )
        wanted = jax.ShapeDtypeStruct(
            parameter.shape,
            jnp.dtype(stored[name]["dtype"]),
            sharding=parameter_sharding(parameter.shape, parameter.axes, mesh),
        )
        failure: Exception | None = None
        try:
            read = restore_arrays(directory, {name: wanted})[name]
        except Exception as error:  # TensorStore's errors share no type.
            failure = error
        # All processes sum or none does: no one waits in there for one that could not read.
        if not (everywhere(failure is None) if shared else failure is None):
            why = "by another process" if failure is None else f"({_brief(failure)})"
            raise RequestError(
                f"checkpoint {path} is damaged: {name} cannot be read {why}; {_REMEDY}"
            ) from failure
        if int(checksum(read)) != stored[name]["checksum"]:
            raise RequestError(
                f"checkpoint {path} is damaged: {name} is not what was written (checksum); "
                f"{_REMEDY}"
            )
        values[name] = read.astype(param_dtype)
    return with_parameters(abstract_decoder(config, dtype=dtype, param_dtype=param_dtype), values)


def _directory_of(card: Mapping[str, Any]) -> str:
    return str(card.get("directory", PARAMETERS))


def _parameters_in(path: epath.Path) -> str | None:
    """Where in a checkpoint its parameters lie; None if there is none."""
    try:
        return _directory_of(read_card(path))
    except RequestError:
        return None


_REMEDY = (
    "put a copy of it back; or move it away, and if it is of a run, run that again: it is made anew"
)


def require_same_model(path: epath.PathLike, found: ModelConfig, expected: ModelConfig) -> None:
    """Raises `RequestError` naming the first field in which two models differ."""
    wanted = expected.to_dict()
    for field, value in found.to_dict().items():
        if value != wanted[field]:
            raise RequestError(
                f"checkpoint {path} is of another model: {field} is {value!r}, not "
                f"{wanted[field]!r}"
            )


def describe(arrays: Mapping[str, jax.Array]) -> dict[str, dict[str, Any]]:
    """Shape, type and checksum of arrays by name. Every process must call it."""
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
    """Some arrays of a saved mapping, each where its sharding says. Waits for no other process."""
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


def write_failure(error: BaseException) -> str:
    """What a failed write says, in a few words."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    # TensorStore gives the operating system's number only in its text.
    _, found, rest = str(error).partition("os_error_code='")
    if found:
        return os.strerror(int(rest.partition("'")[0]))
    return _brief(error)


def discard(directory: epath.Path) -> None:
    """Removes what a failed save has left."""
    for _ in range(20):
        _remove_tree(directory)
        # Orbax gives up at the first failure; its other writes may still make files again.
        time.sleep(0.05)
        if not directory.exists():
            return


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def publish(building: Path, final: Path) -> None:
    """Makes `building` durable and gives it the name `final`, in the place of what had it."""
    files.sync_tree(building)
    replaced = final.with_name(f"{final.name}.partial-replaced")
    if final.exists():
        _remove_tree(epath.Path(replaced))
        final.rename(replaced)
    building.rename(final)
    files.sync_directory(final.parent)
    _remove_tree(epath.Path(replaced))


def _remove_tree(directory: epath.Path) -> None:
    if files.is_remote(directory):
        if directory.exists():
            directory.rmtree()
    else:
        shutil.rmtree(os.fspath(directory), ignore_errors=True)
