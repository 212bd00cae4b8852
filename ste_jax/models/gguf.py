"""How is a GGUF file read?

With the `gguf` package's reader and dequantizer. The file is mapped, not read; `GGUFFile.read`
dequantizes just the rows asked for. What llama.cpp's converter changed is undone: in the `llama`
architecture the rows of q and k lie in the order of interleaved rotary pairs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, ReaderTensor

from ste_jax.errors import RequestError
from ste_jax.models.config import ModelConfig, RopeScaling
from ste_jax.models.families import Family, Weight, family_of
from ste_jax.models.layout import Index

_SHAPES = {
    "num_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_heads": "attention.head_count",
    "max_position": "context_length",
}
_READ = set(_SHAPES.values()) | {
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.type",
    "vocab_size",
}
_WITHOUT_EFFECT = {"rope.scaling.finetuned", "rope.scaling.original_context_length"}


class GGUFFile:
    """A mapped GGUF file: its metadata, its model config and its tensors.

    Raises `RequestError` at construction for a file that is damaged, truncated, of an unsupported
    architecture, or that asks for something which is not known here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise RequestError(f"{self.path} is missing")
        try:
            self.reader = GGUFReader(str(self.path))
        # The reader trusts the file: whatever a cut or damaged one makes it stumble over.
        except Exception as error:
            raise RequestError(
                f"{self.path}: not a whole GGUF file ({error}); fetch it again"
            ) from error
        self._tensors: dict[str, ReaderTensor] = {t.name: t for t in self.reader.tensors}
        self.shapes = {
            name: tuple(int(size) for size in reversed(tensor.shape))
            for name, tensor in self._tensors.items()
        }
        architecture = self.get("general.architecture")
        self.family: Family = family_of(architecture, str(self.path))
        self._check_types()
        try:
            self.config = self._model_config(architecture)
        except (TypeError, ValueError) as error:
            raise RequestError(f"{self.path}: {error}") from error

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata value of `key`."""
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    def name_of(self, weight: Weight) -> str:
        """The tensor's name in this kind of file, with `{layer}` in it."""
        return weight.gguf

    def read(self, name: str, index: Index) -> np.ndarray[Any, Any]:
        """The slice `index` (one per dimension) of tensor `name` in float32, in HF's order."""
        tensor = self._tensors[name]
        rows = self._rows(name, index[0])
        if len(self.shapes[name]) == 1:
            return gguf.quants.dequantize(tensor.data, tensor.tensor_type)[rows]
        picked = np.ascontiguousarray(tensor.data[rows])
        values = gguf.quants.dequantize(picked, tensor.tensor_type)
        return values[(slice(None), *index[1:])]

    def _rows(self, name: str, wanted: slice) -> slice | np.ndarray[Any, Any]:
        """Where in the file the rows `wanted` of HF's order lie."""
        if ".attn_q." not in name and ".attn_k." not in name:
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
        one_of_each = {tensor.tensor_type: tensor for tensor in self._tensors.values()}
        for tensor in one_of_each.values():
            try:
                row = np.atleast_2d(tensor.data)[:1]
                gguf.quants.dequantize(np.ascontiguousarray(row), tensor.tensor_type)
            except NotImplementedError as error:
                raise RequestError(
                    f"{self.path}: tensor {tensor.name} has type {tensor.tensor_type.name}, which "
                    "is not supported"
                ) from error

    def _model_config(self, architecture: str) -> ModelConfig:
        prefix = f"{architecture}."

        def need(key: str) -> Any:
            value = self.get(prefix + key)
            if value is None:
                raise RequestError(f"{self.path}: metadata {prefix}{key} is missing")
            return value

        for field in self.reader.fields:
            key = field.removeprefix(prefix)
            if key != field and key not in _READ | _WITHOUT_EFFECT and self.get(field):
                raise RequestError(
                    f"{self.path}: metadata {field} is {self.get(field)!r}, a field that is not "
                    "known here and may change the computation"
                )
        sizes = {ours: need(theirs) for ours, theirs in _SHAPES.items()}
        heads = sizes["num_heads"]
        head_dim = self.get(prefix + "attention.key_length") or sizes["hidden_size"] // heads
        for key in ("attention.value_length", "rope.dimension_count"):
            if self.get(prefix + key, head_dim) != head_dim:
                raise RequestError(
                    f"{self.path}: metadata {prefix}{key} is {self.get(prefix + key)}, and the "
                    f"head size is {head_dim}; only equal ones are supported"
                )
        return ModelConfig(
            model_type=architecture,
            vocab_size=self._vocab_size(prefix),
            num_kv_heads=self.get(prefix + "attention.head_count_kv", heads),
            head_dim=head_dim,
            norm_eps=_shortest(need("attention.layer_norm_rms_epsilon")),
            rope_theta=_shortest(self.get(prefix + "rope.freq_base", 10000.0)),
            rope_scaling=self._rope_scaling(prefix),
            tie_embeddings="output.weight" not in self.shapes,
            attention_bias="blk.0.attn_q.bias" in self.shapes,
            mlp_bias="blk.0.ffn_gate.bias" in self.shapes,
            **sizes,
        )

    def _vocab_size(self, prefix: str) -> int:
        embedding = self.shapes.get("token_embd.weight")
        if embedding is None:
            raise RequestError(f"{self.path}: tensor token_embd.weight is missing")
        size: int = self.get(prefix + "vocab_size", embedding[0])
        return size

    def _rope_scaling(self, prefix: str) -> RopeScaling | None:
        kind = self.get(prefix + "rope.scaling.type", "none")
        if kind not in ("none", "linear"):
            raise RequestError(
                f"{self.path}: rope scaling of type {kind!r} is not supported; known are none, "
                "linear and a rope_freqs tensor"
            )
        factors = self._tensors.get("rope_freqs.weight")
        if factors is not None:
            if kind == "linear":
                raise RequestError(
                    f"{self.path}: has both a rope_freqs tensor and linear rope scaling"
                )
            return RopeScaling(kind="factors", factors=tuple(float(f) for f in factors.data))
        if kind == "linear":
            return RopeScaling(
                kind="linear", factor=_shortest(self.get(prefix + "rope.scaling.factor", 1.0))
            )
        return None


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: metadata holds 1e-5 as 9.99999974e-06."""
    return float(str(np.float32(value)))
