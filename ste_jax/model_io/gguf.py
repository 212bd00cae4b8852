"""How is a GGUF file read?

With a reader of our own (`gguf_metadata.py`) and the `gguf` package's dequantizer. The file is
mapped, not read; `GGUFFile.read` dequantizes just the rows asked for. What llama.cpp's converter
changed is undone: in the `llama` architecture the rows of q and k lie in the order of interleaved
rotary pairs, and Gemma's norms are stored as 1 + weight.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ste_jax.errors import RequestError
from ste_jax.model_io.families import FAMILIES, IGNORED
from ste_jax.model_io.strict_fields import positive, whole
from ste_jax.model_io.tensor_layout import Index
from ste_jax.model_io.tensor_map import stored
from ste_jax.models.config import LayerKind, ModelConfig, RopeScaling
from ste_jax.models.rotary import rotary_frequencies
from ste_jax.tokenization.gguf_metadata import read_gguf

_FACTORS = "rope_freqs.weight"


class Metadata:
    """The values of a file that say what its model computes: those of its architecture alone.

    Every number is held against what it must be; `RequestError` names the key of one that is not.
    """

    def __init__(self, values: dict[str, Any], architecture: str, where: str) -> None:
        self._prefix = f"{architecture}."
        self._values = {key.removeprefix(self._prefix): value for key, value in values.items()}
        self._read: set[str] = set()
        self.where = where
        self._told = f"{where}: metadata"
        # Without effect: how many tokens the tokenizer has, and how the scaling was come by.
        for key in ("vocab_size", "rope.scaling.original_context_length"):
            self.size(key, 1)
        self.get("rope.scaling.finetuned")

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where there is none."""
        self._read.add(key)
        return self._values.get(key, default)

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer, which must be there if it has no default."""
        return whole(self._needed(key, default), self._prefix + key, self._told)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number as it was meant: metadata holds 1e-5 as 9.99999974e-06."""
        value = positive(self._needed(key, default), self._prefix + key, self._told)
        return positive(float(str(np.float32(value))), self._prefix + key, self._told)

    def optional(self, key: str) -> float | None:
        """Likewise, where it is there."""
        return None if self.get(key) is None else self.number(key)

    def _needed(self, key: str, default: Any) -> Any:
        value = self.get(key, default)
        if value is None:
            raise RequestError(f"{self._told} {self._prefix}{key} is missing")
        return value

    def same(self, key: str, expected: int, what: str) -> None:
        """Refuses a value that is there and another than expected."""
        value = self.size(key, expected)
        if value != expected:
            raise RequestError(
                f"{self._told} {self._prefix}{key} is {value}, and the {what} is "
                f"{expected}; only equal ones are supported"
            )

    def finish(self) -> None:
        """Refuses what nobody has read and is on."""
        for key, value in self._values.items():
            if key not in self._read and value:
                raise RequestError(
                    f"{self._told} {self._prefix}{key} is {value!r}, a field that is not "
                    "known here and may change the computation"
                )


@dataclass(frozen=True)
class _Architecture:
    """What llama.cpp makes of a family."""

    family: str
    particular: Callable[[Metadata, dict[str, Any], RopeScaling | None], dict[str, Any]]
    """(metadata, sizes, rope scaling) -> the fields of `ModelConfig` beside the sizes."""
    interleaved: bool = False
    """The rows of q and k are in the order of interleaved rotary pairs."""


def _llama(meta: Metadata, sizes: dict[str, Any], scaling: RopeScaling | None) -> dict[str, Any]:
    theta = meta.number("rope.freq_base", 10000.0)
    return {"kinds": (LayerKind(rope_theta=theta, rope_scaling=scaling),)}


def _mixtral(meta: Metadata, sizes: dict[str, Any], scaling: RopeScaling | None) -> dict[str, Any]:
    return _llama(meta, sizes, scaling) | {
        "experts": meta.size("expert_count"),
        "experts_per_token": meta.size("expert_used_count"),
    }


def _qwen3(meta: Metadata, sizes: dict[str, Any], scaling: RopeScaling | None) -> dict[str, Any]:
    return _llama(meta, sizes, scaling) | {"qk_norm": True}


def _qwen3_moe(
    meta: Metadata, sizes: dict[str, Any], scaling: RopeScaling | None
) -> dict[str, Any]:
    return _qwen3(meta, sizes, scaling) | {
        "intermediate_size": meta.size("expert_feed_forward_length"),
        "experts": meta.size("expert_count"),
        "experts_per_token": meta.size("expert_used_count"),
    }


def _gemma3(meta: Metadata, sizes: dict[str, Any], scaling: RopeScaling | None) -> dict[str, Any]:
    # What the format leaves out is written into llama.cpp: every sixth layer is global, local ones
    # turn by a base of 10,000, and in the model of 62 layers the scores are scaled otherwise.
    scalar = sizes["head_dim"]
    if sizes["num_layers"] == 62:
        scalar = sizes["hidden_size"] // sizes["num_heads"]
    local = LayerKind(
        window=meta.size("attention.sliding_window"),
        rope_theta=meta.number("rope.freq_base_swa", 10000.0),
    )
    theta = meta.number("rope.freq_base", 1000000.0)
    everywhere = LayerKind(rope_theta=theta, rope_scaling=scaling)
    return {
        "kinds": (*[local] * 5, everywhere),
        "norm_plus_one": True,
        "post_norms": True,
        "qk_norm": True,
        "scale_embeddings": True,
        "activation": "gelu_tanh",
        "query_scalar": float(scalar),
        "final_softcap": meta.optional("final_logit_softcapping"),
    }


_ARCHITECTURES = {
    "llama": _Architecture("llama", _llama, interleaved=True),
    "llama, experts": _Architecture("mixtral", _mixtral, interleaved=True),
    "qwen2": _Architecture("qwen2", _llama),
    "qwen3": _Architecture("qwen3", _qwen3),
    "qwen3moe": _Architecture("qwen3_moe", _qwen3_moe),
    "gemma3": _Architecture("gemma3_text", _gemma3),
}


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
        if kind not in _ARCHITECTURES:
            raise RequestError(
                f"{self.path}: architecture {name!r} is not supported in GGUF files; supported are "
                f"{', '.join(each for each in sorted(_ARCHITECTURES) if ',' not in each)}"
            )
        self._architecture = _ARCHITECTURES[kind]
        self._check_types()
        meta = Metadata(
            {key: value for key, value in values.items() if key.startswith(f"{name}.")},
            str(name),
            str(self.path),
        )
        try:
            self.config = self._model_config(meta)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise RequestError(f"{self.path}: {error}") from error
        meta.finish()
        weights = FAMILIES[self._architecture.family].weights
        self.stored = stored(self.config, weights, lambda weight: weight.gguf)
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
        """Where in the file the rows `wanted` of HF's order lie."""
        turned = ".attn_q." in name or ".attn_k." in name
        if not (turned and self._architecture.interleaved):
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

    def _model_config(self, meta: Metadata) -> ModelConfig:
        heads, hidden = meta.size("attention.head_count"), meta.size("embedding_length")
        if meta.get("attention.key_length") is None and hidden % heads:
            raise RequestError(
                f"{self.path}: embedding_length {hidden} is no multiple of head_count {heads}"
            )
        head_dim = meta.size("attention.key_length", hidden // heads)
        layers = meta.size("block_count")
        if layers > len(self.shapes):
            raise RequestError(
                f"{self.path}: block_count is {layers}, and the file holds {len(self.shapes)} "
                "tensors"
            )
        for key in ("attention.value_length", "rope.dimension_count"):
            meta.same(key, head_dim, "head size")
        sizes = {
            "vocab_size": self._vocab_size(),
            "hidden_size": hidden,
            "intermediate_size": meta.size("feed_forward_length"),
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": meta.size("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position": meta.size("context_length"),
            "norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
            "tie_embeddings": "output.weight" not in self.shapes,
            "qkv_bias": "blk.0.attn_q.bias" in self.shapes,
            "o_bias": "blk.0.attn_output.bias" in self.shapes,
            "mlp_bias": "blk.0.ffn_gate.bias" in self.shapes,
        }
        particular = self._architecture.particular(meta, sizes, self._rope_scaling(meta, head_dim))
        return ModelConfig(model_type=self._architecture.family, **(sizes | particular))

    def _vocab_size(self) -> int:
        embedding = self.shapes.get("token_embd.weight")
        if embedding is None:
            raise RequestError(f"{self.path}: tensor token_embd.weight is missing")
        return embedding[0]

    def _rope_scaling(self, meta: Metadata, head_dim: int) -> RopeScaling | None:
        factor = meta.optional("rope.scaling.factor")
        # As llama.cpp takes it: a factor alone is a linear one.
        kind = meta.get("rope.scaling.type", "none" if factor is None else "linear")
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
        llama3 = _llama3(factors, meta.number("rope.freq_base", 10000.0), head_dim)
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

    The largest factor is the scaling's; its other three numbers are in all released models alike.
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
