"""How do the weights of a file get onto the devices?

Every name and shape is checked against the declaration before anything is read. Then each device's
shard of each parameter is read by the host that owns the device, straight from the file's slices:
the host never holds more than one shard and one tensor's slice.
"""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ste_jax.model_io import tensor_layout
from ste_jax.model_io.gguf import GGUFFile
from ste_jax.model_io.hf import HFDirectory
from ste_jax.model_io.sources import Source
from ste_jax.model_io.tensor_layout import Index
from ste_jax.model_io.tensor_map import Stored
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.models.parameters import with_parameters
from ste_jax.parallel.sharding import parameter_sharding
from ste_jax.system.errors import RequestError


class WeightFile(Protocol):
    """A model's file or files, opened and not yet read."""

    path: Path
    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    """The shapes of all tensors that are there, by name."""
    stored: dict[str, Stored]
    """In which tensors of the file each of our parameters is, by path."""
    repeated: dict[str, str]
    """By name: tensors that may be there, and the tensor that each must then equal."""

    def passed_over(self, name: str) -> bool:
        """Whether the tensor of that name may be there and need not be read."""

    def read(self, name: str, index: Index) -> np.ndarray[Any, Any]:
        """The slice `index` (one per dimension) of tensor `name`."""


def open_weights(source: Source | str | os.PathLike[str]) -> WeightFile:
    """Opens an HF directory or a `.gguf` file and checks all names and shapes.

    Raises `RequestError` that names a tensor which is missing, unexpected or of the wrong shape.
    """
    path = Path(source.path if isinstance(source, Source) else source)
    file: WeightFile = GGUFFile(path) if path.suffix == ".gguf" else HFDirectory(path)
    _check(file)
    return file


def load_weights(
    source: Source | str | os.PathLike[str],
    mesh: Mesh,
    *,
    param_dtype: Any = jnp.float32,
    dtype: Any = jnp.float32,
) -> Decoder:
    """Loads an HF directory or a `.gguf` file as a `Decoder` sharded over `mesh`.

    Parameters are stored as `param_dtype` and computed with in `dtype`. Raises `RequestError` as
    `open_weights` does.
    """
    file = open_weights(source)
    values = {path: load_parameter(file, path, mesh, param_dtype) for path in file.stored}
    blank = abstract_decoder(file.config, dtype=dtype, param_dtype=param_dtype)
    return with_parameters(blank, values)


def load_parameter(file: WeightFile, path: str, mesh: Mesh, dtype: Any) -> jax.Array:
    """One parameter of an opened file, sharded over `mesh`."""
    stored = file.stored[path]
    shape = stored.parameter.shape
    sharding = parameter_sharding(shape, stored.parameter.axes, mesh)
    devices_of: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(
            part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True)
        )
        devices_of.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in devices_of.items():
        values = _read_shard(file, stored, tuple(slice(*b) for b in bounds), jnp.dtype(dtype))
        # Waiting here is what keeps the host's memory to one shard.
        shards += jax.block_until_ready([jax.device_put(values, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _read_shard(
    file: WeightFile, stored: Stored, index: Index, dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    shard = np.empty([part.stop - part.start for part in index], dtype)
    numbered, inside = index[: stored.numbered], index[stored.numbered :]
    for place in itertools.product(*(range(part.start, part.stop) for part in numbered)):
        here = tuple(at - part.start for at, part in zip(place, numbered, strict=True))
        name = stored.name(place)
        shard[here] = tensor_layout.read_slice(
            lambda file_index, name=name: file.read(name, file_index),  # type: ignore[misc]
            stored.layout,
            stored.axes,
            stored.sizes,
            inside,
        )
    return shard


def _check(file: WeightFile) -> None:
    _refuse_far_more(file)
    expected = {
        one.name(place): one.shape for one in file.stored.values() for place in one.places()
    }
    _refuse("is missing", [name for name in expected if name not in file.shapes], file)
    _refuse(
        "is not part of the model that the config describes",
        [name for name in file.shapes if name not in expected and not file.passed_over(name)],
        file,
    )
    for name, shape in expected.items():
        if file.shapes[name] != shape:
            raise RequestError(
                f"{file.path}: tensor {name} has shape {list(file.shapes[name])}, the config "
                f"asks for {list(shape)}"
            )

    for name, original in file.repeated.items():
        if name in file.shapes and not _equal(file, name, original):
            raise RequestError(
                f"{file.path}: tensor {name} is another than {original}, though the config's "
                "tie_word_embeddings says that they are one; set it to false if they are not"
            )


def _refuse_far_more(file: WeightFile) -> None:
    """Refuses a config that asks for far more tensors than the file has, without listing them."""
    count = sum(math.prod(one.parameter.shape[: one.numbered]) for one in file.stored.values())
    if count <= 2 * len(file.shapes) + 1000:
        return
    names = (one.name(place) for one in file.stored.values() for place in one.places())
    first = next(name for name in names if name not in file.shapes)
    raise RequestError(
        f"{file.path}: tensor {first} is missing; the config describes {count} tensors, and the "
        f"file holds {len(file.shapes)}"
    )


def _equal(file: WeightFile, name: str, other: str) -> bool:
    """Whether two matrices are the same; they are read a few rows at a time."""
    shape = file.shapes[name]
    if shape != file.shapes[other]:
        return False
    for start in range(0, shape[0], 4096):
        part = (slice(start, min(start + 4096, shape[0])), slice(0, shape[1]))
        if not np.array_equal(file.read(name, part), file.read(other, part)):
            return False
    return True


def _refuse(what: str, names: list[str], file: WeightFile) -> None:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise RequestError(f"{file.path}: tensor {names[0]}{more} {what}")
