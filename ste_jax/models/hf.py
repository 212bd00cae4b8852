"""How is a Hugging Face model directory read and written?

Reading is lazy: the headers of the safetensors files give names and shapes, and `HFDirectory.read`
copies just the slice asked for.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors relies on)
import numpy as np
import safetensors
from flax import nnx
from safetensors.numpy import save_file

from ste_jax.errors import RequestError
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.models.families import Family, Weight, family_of
from ste_jax.models.layout import Index, to_file

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16")


class HFDirectory:
    """A directory with `config.json` and safetensors weights, one file or several under an index.

    Raises `RequestError` at construction for a missing, malformed, truncated or unsupported file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        config_file = self.path / "config.json"
        values = _read_json(config_file)
        self.family: Family = family_of(values.get("model_type"), str(config_file))
        try:
            self.config: ModelConfig = self.family.config_from_hf(values, str(config_file))
        except (TypeError, ValueError) as error:
            raise RequestError(f"{config_file}: {error}") from error
        self._files = _weight_files(self.path)
        self._tensors: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in self._files:
            self._open(file)

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
            self._tensors[name] = tensor
            self.shapes[name] = tuple(tensor.get_shape())

    def name_of(self, weight: Weight) -> str:
        """The tensor's name in this kind of file, with `{layer}` in it."""
        return weight.hf

    def read(self, name: str, index: Index) -> np.ndarray[Any, Any]:
        """The slice `index` (one per dimension) of tensor `name` in the file's float type."""
        out: np.ndarray[Any, Any] = self._tensors[name][index]
        return out


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model. Raises `RequestError` naming what is missing."""
    index = directory / _INDEX
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise RequestError(f"{index}: has no weight_map")
        files = [directory / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if not file.exists():
                raise RequestError(f"{file} is missing, and {index} names it")
        return files
    if (directory / _SINGLE).exists():
        return [directory / _SINGLE]
    pickles = sorted([*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")])
    if pickles:
        raise RequestError(
            f"{directory}: {_SINGLE} is missing and {pickles[0].name} is a pickle, which can run "
            "code when read; convert it to safetensors"
        )
    raise RequestError(f"{directory / _SINGLE} is missing")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise RequestError(f"{file} is missing")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise RequestError(f"{file}: a JSON object is expected")
    return values


def save_hf(model: Decoder, directory: str | os.PathLike[str]) -> None:
    """Writes `config.json` and `model.safetensors` (in the parameters' own type) to `directory`.

    The whole model passes through the host's memory, and every parameter must be addressable from
    this process. The tokenizer's files are not the model's and are not written.
    """
    config = model.config
    family = family_of(config.model_type, "model")
    values = family.config_to_hf(config)
    arrays = dict(nnx.to_flat_state(nnx.state(model)))
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for weight in family.weights:
        parameter = config.parameters().get(weight.path)
        if parameter is None:
            continue
        array = np.asarray(arrays[tuple(weight.path.split("."))].get_value())
        if parameter.axes[0] == "layers":
            for layer in range(config.num_layers):
                name = weight.hf.format(layer=layer)
                tensors[name] = to_file(array[layer], parameter.axes[1:], weight.layout)
        else:
            tensors[weight.hf] = to_file(array, parameter.axes, weight.layout)

    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path / f".{_SINGLE}"), metadata={"format": "pt"})
    os.replace(path / f".{_SINGLE}", path / _SINGLE)
    # The config last: a directory without it is not a model.
    (path / ".config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(path / ".config.json", path / "config.json")
