"""How is a GGUF file read?

With a reader of our own (`ste_jax.tokenization.gguf_metadata`) and the `gguf` package's
dequantizer. The file is mapped, not read; `GGUFFile.read` dequantizes just the rows asked for. What
llama.cpp's converter changed is undone: in the `llama` architecture the rows of q and k lie in the
order of interleaved rotary pairs, and Gemma's norms are stored as 1 + weight.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ste_jax.model_io.families import FAMILIES
from ste_jax.model_io.families.weights import IGNORED
from ste_jax.model_io.strict_fields import Fields
from ste_jax.model_io.tensor_layout import Index
from ste_jax.model_io.tensor_map import stored
from ste_jax.models.config import LayerKind, ModelConfig, RopeScaling
from ste_jax.models.rotary import rotary_frequencies
from ste_jax.system.errors import RequestError
from ste_jax.tokenization.gguf_metadata import read_gguf

_FACTORS = "rope_freqs.weight"
_LARGEST = float(np.finfo(np.float32).max)


_BY_ARCHITECTURE = {
    family.gguf.architecture: (model_type, family, family.gguf)
    for model_type, family in FAMILIES.items()
    if family.gguf is not None
}


def _metadata(values: Mapping[str, Any], architecture: str, where: str) -> Fields:
    """The values of a file that say what its model computes: those of its architecture alone."""
    prefix = f"{architecture}."
    own = {
        key.removeprefix(prefix): _as_meant(value)
        for key, value in values.items()
        if key.startswith(prefix)
    }
    metadata = Fields(own, where, known=["rope.scaling.finetuned"], prefix=f"metadata {prefix}")
    # Two kinds of fields have no effect: the tokenizer's size, and where the scaling came from.
    for key in ("vocab_size", "rope.scaling.original_context_length"):
        metadata.size(key, 1)
    return metadata


def _as_meant(value: Any) -> Any:
    """A number as its author wrote it: metadata holds 1e-5 as 9.99999974e-06."""
    single = isinstance(value, float) and abs(value) < _LARGEST
    return float(str(np.float32(value))) if single else value


class GGUFFile:
    """A mapped GGUF file: its metadata, its model config and its tensors.

    Raises `RequestError` at construction for a file that is damaged, truncated, of an unsupported
    architecture, or that asks for something which is not known here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise RequestError(f"{self.path} is missing")
        values, tensors = read_gguf(self.path)
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self.shapes = {tensor.name: tensor.shape for tensor in tensors}
        self._data = np.memmap(self.path, np.uint8, mode="r")
        name = values.get("general.architecture")
        experts = values.get("llama.expert_count", 0) if name == "llama" else 0
        kind = f"{name}, experts" if experts else name
        if kind not in _BY_ARCHITECTURE:
            raise RequestError(
                f"{self.path}: architecture {name!r} is not supported in GGUF files; supported are "
                f"{', '.join(each for each in sorted(_BY_ARCHITECTURE) if ',' not in each)}"
            )
        self._model_type, family, self._form = _BY_ARCHITECTURE[kind]
        self._check_types()
        metadata = _metadata(values, str(name), str(self.path))
        try:
            self.config = self._model_config(metadata)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise RequestError(f"{self.path}: {error}") from error
        metadata.finish()
        self.stored = stored(self.config, family.weights, lambda weight: weight.gguf)
        self.repeated: dict[str, str] = {}

    def passed_over(self, name: str) -> bool:
        """Whether the tensor of that name need not be read."""
        return name.endswith(IGNORED)

    def read(self, name: str, index: Index) -> np.ndarray[Any, Any]:
        """The slice `index` (one per dimension) of tensor `name` in float32, in HF's order."""
        values = self._values(name, index)
        if self.config.norm_plus_one and name.endswith("norm.weight"):
            values = values - np.float32(1)
        return values

    def _values(self, name: str, index: Index) -> np.ndarray[Any, Any]:
        tensor = self._tensors[name]
        rows = self._data[tensor.start : tensor.start + tensor.size]
        rows = rows.reshape((*tensor.shape[:-1], -1))
        if len(tensor.shape) == 1:
            values: np.ndarray[Any, Any] = gguf.quants.dequantize(rows[None], tensor.kind)[0]
            values = values[self._rows(name, index[0])]
        else:
            picked = rows[(self._rows(name, index[0]), *index[1:-1])]
            values = gguf.quants.dequantize(np.ascontiguousarray(picked), tensor.kind)
            values = values[..., index[-1]]
        return values

    def _rows(self, name: str, wanted: slice) -> slice | np.ndarray[Any, Any]:
        """Where in the file the rows `wanted`, which are in HF's order, are stored."""
        paired = ".attn_q." in name or ".attn_k." in name
        if not (paired and self._form.interleaved):
            return wanted
        # HF: a head's rows are the first sides of all pairs, then the second; llama.cpp: pair by
        # pair.
        half = self.config.head_dim // 2
        rows = np.arange(wanted.start, wanted.stop)
        head, within = np.divmod(rows, 2 * half)
        side, pair = np.divmod(within, half)
        out: np.ndarray[Any, Any] = head * 2 * half + pair * 2 + side
        return out

    def _check_types(self) -> None:
        one_of_each = {tensor.kind: tensor for tensor in self._tensors.values()}
        for kind, tensor in one_of_each.items():
            try:
                gguf.quants.dequantize(
                    np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind
                )
            except NotImplementedError as error:
                raise RequestError(
                    f"{self.path}: tensor {tensor.name} has type {kind.name}, which is not "
                    "supported"
                ) from error

    def _model_config(self, metadata: Fields) -> ModelConfig:
        heads, hidden = metadata.size("attention.head_count"), metadata.size("embedding_length")
        if metadata.take("attention.key_length") is None and hidden % heads:
            raise RequestError(
                f"{self.path}: embedding_length {hidden} is no multiple of head_count {heads}"
            )
        head_dim = metadata.size("attention.key_length", hidden // heads)
        layers = metadata.size("block_count")
        if layers > len(self.shapes):
            raise RequestError(
                f"{self.path}: block_count is {layers}, and the file holds {len(self.shapes)} "
                "tensors"
            )
        for key in ("attention.value_length", "rope.dimension_count"):
            if metadata.size(key, head_dim) != head_dim:
                raise metadata.refuse(
                    key, f"and the head size is {head_dim}; only equal ones are supported"
                )
        sizes = {
            "vocab_size": self._vocab_size(),
            "hidden_size": hidden,
            "intermediate_size": metadata.size("feed_forward_length"),
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": metadata.size("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position": metadata.size("context_length"),
            "norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
            "tie_embeddings": "output.weight" not in self.shapes,
            "qkv_bias": "blk.0.attn_q.bias" in self.shapes,
            "o_bias": "blk.0.attn_output.bias" in self.shapes,
            "mlp_bias": "blk.0.ffn_gate.bias" in self.shapes,
        }
        particular = self._form.particular(metadata, sizes, self._rope_scaling(metadata, head_dim))
        return ModelConfig(model_type=self._model_type, **(sizes | particular))

    def _vocab_size(self) -> int:
        embedding = self.shapes.get("token_embd.weight")
        if embedding is None:
            raise RequestError(f"{self.path}: tensor token_embd.weight is missing")
        return embedding[0]

    def _rope_scaling(self, metadata: Fields, head_dim: int) -> RopeScaling | None:
        factor = metadata.optional("rope.scaling.factor")
        # As llama.cpp takes it: a factor alone is a linear one.
        kind = metadata.take("rope.scaling.type", "none" if factor is None else "linear")
        if kind not in ("none", "linear"):
            raise RequestError(
                f"{self.path}: rope scaling of type {kind!r} is not supported; known are none, "
                "linear and a rope_freqs tensor"
            )
        if _FACTORS not in self._tensors:
            return RopeScaling(kind="linear", factor=factor or 1.0) if kind == "linear" else None
        if kind == "linear":
            raise RequestError(f"{self.path}: has both a rope_freqs tensor and linear rope scaling")
        factors = self._factors(head_dim)
        llama3 = _llama3(factors, metadata.number("rope.freq_base", 10000.0), head_dim)
        return llama3 or RopeScaling(kind="factors", factors=tuple(map(float, factors)))

    def _factors(self, head_dim: int) -> np.ndarray[Any, Any]:
        """What rotary frequencies are divided by; [head_dim / 2]."""
        shape = self.shapes[_FACTORS]
        if shape != (head_dim // 2,):
            raise RequestError(
                f"{self.path}: tensor {_FACTORS} has shape {list(shape)}, the head size asks for "
                f"{[head_dim // 2]}"
            )
        factors = np.array(self._values(_FACTORS, (slice(0, head_dim // 2),)))
        if not np.all((factors > 0) & (factors < np.inf)):
            raise RequestError(f"{self.path}: tensor {_FACTORS} holds a number that is not above 0")
        return factors


def _llama3(factors: np.ndarray[Any, Any], theta: float, head_dim: int) -> RopeScaling | None:
    """The scaling of Llama 3.1 and later, if that is what the table of factors was made from.

    The largest factor is the scaling's factor; its other three numbers are the same in all released
    models.
    """
    if factors.max() <= 1:
        return None
    scaling = RopeScaling(
        kind="llama3",
        factor=float(factors.max()),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=8192,
    )
    plain = rotary_frequencies(LayerKind(rope_theta=theta), head_dim)
    scaled = rotary_frequencies(LayerKind(rope_theta=theta, rope_scaling=scaling), head_dim)
    return scaling if np.allclose(plain / scaled, factors, rtol=1e-5, atol=0) else None
