"""How is a Hugging Face model directory read and written?

Reading is lazy: the headers of the safetensors files give names and shapes, and `HFDirectory.read`
copies just the slice asked for.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors relies on)
import numpy as np
import safetensors
from etils import epath
from safetensors.numpy import save_file

from ste_jax.model_io.families import family_of
from ste_jax.model_io.families.family import Family
from ste_jax.model_io.families.weights import IGNORED, Weight
from ste_jax.model_io.sources import ADAPTER, adapter_alone
from ste_jax.model_io.tensor_layout import Index, to_file
from ste_jax.model_io.tensor_map import Place, Stored, stored
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import parameters_of
from ste_jax.system import files
from ste_jax.system.errors import RequestError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")
SHARD_BYTES = 5 * 10**9
"""How many bytes a file of weights that is written has, at the most."""


class HFDirectory:
    """A directory with `config.json` and safetensors weights, one file or several under an index.

    Raises `RequestError` at construction for a missing, malformed, truncated or unsupported file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        config_file = self.path / "config.json"
        values = files.read_object(config_file)
        self._family: Family = family_of(values.get("model_type"), str(config_file))
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files = _weight_files(self.path)
        for file in self._files:
            self._open(file)
        self._refuse_more_layers(values, config_file)
        self.config: ModelConfig = self._family.read_config(values, str(config_file))
        self.stored = stored(self.config, self._family.weights, self._name_of)
        names = {one.name: self._name_of(one) for one in self._family.weights}
        # A tied model's file may hold the embedding once more, as the output matrix.
        tied = self.config.tie_embeddings
        self.repeated = {names["unembed"]: names["embed"]} if tied else {}

    def _refuse_more_layers(self, values: Mapping[str, Any], where: Path) -> None:
        """Refuses more layers than there are tensors, before anything is made for each layer."""
        for group in (values, values.get("text_config")):
            layers = group.get("num_hidden_layers") if isinstance(group, dict) else None
            if isinstance(layers, int) and layers > len(self.shapes):
                raise RequestError(
                    f"{where}: num_hidden_layers is {layers}, and {self.path} holds "
                    f"{len(self.shapes)} tensors"
                )

    def _open(self, file: Path) -> None:
        try:
            handle = safetensors.safe_open(str(file), framework="numpy")
            names = list(handle.keys())
        except (safetensors.SafetensorError, OSError) as error:
            raise RequestError(
                f"{file}: not a whole safetensors file ({error}); fetch it again"
            ) from error
        for name in names:
            tensor = handle.get_slice(name)
            if name in self.shapes:
                raise RequestError(f"{file}: tensor {name} is also in another file of {self.path}")
            if tensor.get_dtype() not in _FLOATS:
                raise RequestError(
                    f"{file}: tensor {name} has type {tensor.get_dtype()}; supported are "
                    f"{', '.join(_FLOATS)}"
                )
            self._file_of[name] = file
            self.shapes[name] = tuple(tensor.get_shape())

    def _name_of(self, weight: Weight) -> str:
        return self._family.root + weight.hf

    def passed_over(self, name: str) -> bool:
        """Whether the tensor of that name need not be read."""
        foreign = name.startswith(self._family.foreign)
        return foreign or name.endswith(IGNORED) or name in self.repeated

    def read(self, name: str, index: Index) -> np.ndarray[Any, Any]:
        """The slice `index` (one per dimension) of tensor `name` in the file's float type."""
        # Opened for this alone: the pages of a mapped file count as memory while it is open.
        with safetensors.safe_open(str(self._file_of[name]), framework="numpy") as file:
            out: np.ndarray[Any, Any] = file.get_slice(name)[index]
        return out


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model. Raises `RequestError` naming what is missing."""
    index, single = directory / _INDEX, directory / _SINGLE
    if index.exists():
        weight_map = files.read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise RequestError(f"{index}: has no weight_map")
        names = {str(name) for name in weight_map.values()}
        if any(Path(name).name != name for name in names):
            raise RequestError(f"{index}: weight_map names a file that is not beside it")
        found = [directory / name for name in sorted(names)]
        for file in found:
            if not file.exists():
                raise RequestError(f"{file} is missing, and {index} names it")
        # Of two sets of weights only their owner knows which is meant.
        others = {single, *directory.glob("model-*-of-*.safetensors")} - set(found)
        for file in sorted(other for other in others if other.exists()):
            raise RequestError(
                f"{directory}: {file.name} lies beside {index.name}, which does not name it; "
                "remove the one that is not meant"
            )
        return found
    if single.exists():
        return [single]
    if (directory / ADAPTER).exists():
        raise RequestError(f"{directory}: {adapter_alone(directory)}")
    pickles = sorted([*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")])
    if pickles:
        raise RequestError(
            f"{directory}: {_SINGLE} is missing and {pickles[0].name} is a pickle, which can run "
            "code when read; convert it to safetensors"
        )
    raise RequestError(f"{single} is missing")


def save_hf(
    model: Decoder,
    directory: str | os.PathLike[str],
    *,
    special_token_ids: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Writes `config.json` and safetensors (in the parameters' own type) to `directory`.

    The config also says the type and the `special_token_ids` (`eos_token_id`, ...), which other
    libraries look for there.

    One file, or several of at most `shard_bytes` under an index; one file's tensors pass through
    the host's memory at once, and `progress` is called with the bytes of each that is written.
    Every parameter must be addressable from this process. The tokenizer's files are not the model's
    and are not written.

    Raises:
      RequestError: the model has no form in a Hugging Face config.
    """
    config = model.config
    family = family_of(config.model_type, "model")
    arrays = parameters_of(model)
    # transformers 5 knows both names; `torch_dtype` is the one that earlier versions know.
    kind = {"torch_dtype": str(arrays["embed"].dtype)}
    values = describe_config(config) | kind | dict(special_token_ids or {})
    tensors = _in_file_order(stored(config, family.weights, lambda weight: weight.hf))
    itemsize = {path: array.dtype.itemsize for path, array in arrays.items()}
    shards: list[list[tuple[Stored, Place]]] = [[]]
    sizes = [0]
    for one, place in tensors:
        size = math.prod(one.shape) * itemsize[one.path]
        if shards[-1] and sizes[-1] + size > shard_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append((one, place))
        sizes[-1] += size

    path = epath.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    file_of: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = _SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        contents = {
            one.name(place): to_file(_tensor(arrays[one.path], place), one.axes, one.layout)
            for one, place in shard
        }
        _write(Path(path / name), contents)
        file_of |= dict.fromkeys(contents, name)
        progress(sizes[number - 1])
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": file_of}
        files.write_json(path / _INDEX, index)
    # The config last: a directory without it is not a model.
    files.write_json(path / "config.json", values)


def _write(path: Path, contents: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write a file of tensors, whole or not at all, for the same readers as any new file."""
    partial = path.with_name(f".{path.name}")
    partial.touch()
    mode = partial.stat().st_mode
    save_file(contents, str(partial), metadata={"format": "pt"})
    partial.chmod(mode)  # safetensors lets none but the owner read what it writes
    partial.replace(path)


def describe_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config.json` that say what the model computes.

    Raises `RequestError` where a config cannot say what this model computes.
    """
    family = family_of(config.model_type, "model")
    values = family.config_to_hf(config)
    again = family.read_config(values, "config.json")
    layers = range(config.num_layers)
    for field in dataclasses.fields(config):
        ours, theirs = (getattr(each, field.name) for each in (config, again))
        if field.name == "kinds":
            ours, theirs = ([each.kind_of(n) for n in layers] for each in (config, again))
        if ours != theirs:
            raise RequestError(
                f"this model has no form in a Hugging Face config of type {config.model_type}: "
                f"{field.name} is {ours!r}, and what would be written says {theirs!r}"
            )
    return values


def _tensor(array: jax.Array, place: Place) -> np.ndarray[Any, Any]:
    """The slice of a stacked parameter that the file keeps as a tensor of its own."""
    return np.asarray(_at(array, np.asarray(place, np.int32)) if place else array)


@jax.jit
def _at(array: jax.Array, place: jax.Array) -> jax.Array:
    return array[tuple(place)]


def _in_file_order(of_model: Mapping[str, Stored]) -> list[tuple[Stored, Place]]:
    """All tensors, first those outside the layers, then layer by layer."""

    def layer(tensor: tuple[Stored, Place]) -> int:
        one, place = tensor
        return one.layers[place[0]] if one.layers else -1

    return sorted(((one, place) for one in of_model.values() for place in one.places()), key=layer)
