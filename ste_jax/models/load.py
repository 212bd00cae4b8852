"""How do the weights of a file get onto the devices?

Every name and shape is checked against the declaration before anything is read. Then each device's
shard of each parameter is read by the host that owns the device, straight from the file's slices:
the host never holds more than one shard and one tensor's slice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from ste_jax.errors import RequestError
from ste_jax.models import layout
from ste_jax.models.config import ModelConfig, Parameter
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.models.families import Family, Weight
from ste_jax.models.gguf import GGUFFile
from ste_jax.models.hf import HFDirectory
from ste_jax.models.layout import Index
from ste_jax.models.sources import Source
from ste_jax.sharding import parameter_sharding


class WeightFile(Protocol):
    """A model's file or files, opened and not yet read."""

    path: Path
    config: ModelConfig
    family: Family
    shapes: dict[str, tuple[int, ...]]

    def name_of(self, weight: Weight) -> str: ...

    def read(self, name: str, index: Index) -> np.ndarray[Any, Any]: ...


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
    declared = file.config.parameters()
    graph, state = nnx.split(abstract_decoder(file.config, dtype=dtype, param_dtype=param_dtype))
    flat = dict(nnx.to_flat_state(state))
    for weight in file.family.weights:
        if weight.path not in declared:
            continue
        path = tuple(weight.path.split("."))
        parameter = declared[weight.path]
        sharding = parameter_sharding(parameter.shape, parameter.axes, mesh)
        value = _load_parameter(file, weight, parameter, sharding, jnp.dtype(param_dtype))
        flat[path] = flat[path].replace(value)
    model: Decoder = nnx.merge(graph, nnx.from_flat_state(flat))
    return model


def _load_parameter(
    file: WeightFile, weight: Weight, parameter: Parameter, sharding: Sharding, dtype: np.dtype[Any]
) -> jax.Array:
    devices_of: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(parameter.shape).items():
        bounds = tuple(
            part.indices(size)[:2] for part, size in zip(index or (), parameter.shape, strict=True)
        )
        devices_of.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in devices_of.items():
        values = _read_shard(file, weight, parameter, tuple(slice(*b) for b in bounds), dtype)
        # Waiting here is what keeps the host's memory to one shard.
        shards += jax.block_until_ready([jax.device_put(values, device) for device in devices])
    return jax.make_array_from_single_device_arrays(parameter.shape, sharding, shards)


def _read_shard(
    file: WeightFile, weight: Weight, parameter: Parameter, index: Index, dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    sizes = dict(zip(parameter.axes, parameter.shape, strict=True))
    shard = np.empty([part.stop - part.start for part in index], dtype)
    stacked = parameter.axes[0] == "layers"
    layers = range(index[0].start, index[0].stop) if stacked else range(1)
    for place, layer in enumerate(layers):
        name = file.name_of(weight).format(layer=layer)
        values = layout.read_slice(
            lambda file_index, name=name: file.read(name, file_index),  # type: ignore[misc]
            weight.layout,
            parameter.axes[1:] if stacked else parameter.axes,
            sizes,
            index[1:] if stacked else index,
        )
        shard[place if stacked else ...] = values
    return shard


def _check(file: WeightFile) -> None:
    declared = file.config.parameters()
    expected: dict[str, tuple[int, ...]] = {}
    for weight in file.family.weights:
        if weight.path not in declared:
            continue
        parameter = declared[weight.path]
        sizes = dict(zip(parameter.axes, parameter.shape, strict=True))
        for layer in range(sizes.get("layers", 1)):
            name = file.name_of(weight).format(layer=layer)
            expected[name] = layout.file_shape(weight.layout, sizes)
    _refuse("is missing", [name for name in expected if name not in file.shapes], file)
    _refuse(
        "is not part of the model that the config describes",
        [name for name in file.shapes if name not in expected and not _ignored(name, file)],
        file,
    )
    for name, shape in expected.items():
        if file.shapes[name] != shape:
            raise RequestError(
                f"{file.path}: tensor {name} has shape {list(file.shapes[name])}, the config "
                f"asks for {list(shape)}"
            )


def _ignored(name: str, file: WeightFile) -> bool:
    # A tied model's file may repeat the embedding as the output matrix.
    outputs = [file.name_of(w) for w in file.family.weights if w.path == "unembed"]
    return name.endswith(file.family.ignored) or name in outputs


def _refuse(what: str, names: list[str], file: WeightFile) -> None:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise RequestError(f"{file.path}: tensor {names[0]}{more} {what}")
