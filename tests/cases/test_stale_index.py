"""Of two sets of weights in a directory neither is taken in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ste_jax.model_io.families import family_of
from ste_jax.model_io.hf import HFDirectory
from ste_jax.model_io.tensor_map import stored
from ste_jax.system.errors import RequestError
from tests.models.families import SIZES

CONFIG = {**SIZES, "model_type": "llama", "tie_word_embeddings": True}


def weights(directory: Path, value: float) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors of a small model, each number the same; its config is written, too."""
    (directory / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    family = family_of("llama", "config.json")
    found = stored(family.read_config(CONFIG, "config.json"), family.weights, lambda one: one.hf)
    return {
        one.name(place): np.full(one.shape, value, np.float32)
        for one in found.values()
        for place in one.places()
    }


def shards(directory: Path, tensors: dict[str, np.ndarray[Any, Any]], count: int) -> list[str]:
    """Writes them as so many files, without an index; returns which file holds which."""
    names = [f"model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    for number, name in enumerate(names):
        part = dict(list(tensors.items())[number::count])
        save_file(part, directory / name, metadata={"format": "pt"})
    return names


def index(directory: Path, names: list[str], tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    weight_map = {tensor: names[n % len(names)] for n, tensor in enumerate(tensors)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def first_norm(directory: Path) -> float:
    return float(HFDirectory(directory).read("model.norm.weight", (slice(0, 1),))[0])


def test_one_file_beside_an_index_of_others(tmp_path: Path) -> None:
    old = weights(tmp_path, 0.5)
    index(tmp_path, shards(tmp_path, old, 2), old)
    assert first_norm(tmp_path) == 0.5
    save_file(weights(tmp_path, 1.0), tmp_path / "model.safetensors")
    both = r"model\.safetensors lies beside model\.safetensors\.index\.json"
    with pytest.raises(RequestError, match=both):
        HFDirectory(tmp_path)
    # With the index gone the one file is the model, whatever lies there still.
    (tmp_path / "model.safetensors.index.json").unlink()
    assert first_norm(tmp_path) == 1.0


def test_more_files_than_the_index_names(tmp_path: Path) -> None:
    old = weights(tmp_path, 0.5)
    index(tmp_path, shards(tmp_path, old, 2), old)
    shards(tmp_path, weights(tmp_path, 1.0), 3)
    with pytest.raises(RequestError, match=r"model-00001-of-00003\.safetensors lies beside"):
        HFDirectory(tmp_path)


def test_an_index_of_the_one_file_is_none_of_others(tmp_path: Path) -> None:
    tensors = weights(tmp_path, 1.0)
    save_file(tensors, tmp_path / "model.safetensors")
    index(tmp_path, ["model.safetensors"], tensors)
    # Files of other names are of other formats, as Mistral's consolidated one.
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "consolidated.safetensors")
    assert first_norm(tmp_path) == 1.0
