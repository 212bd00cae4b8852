"""What is the shape of a model, and which parameters does that shape make?

`ModelConfig` holds the numbers that a family's own config maps to. `ModelConfig.parameters`
declares every parameter once: its shape, its logical axes and how it starts. Abstract shapes,
shardings, random initialization, loading and the parameter count all derive from that one
declaration.

Nothing here imports JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ste_jax.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the rotary frequencies are changed to reach longer contexts.

    `linear` divides all of them by `factor`. `llama3` (Llama 3.1 model card) divides the long
    wavelengths by `factor`, keeps the short ones, and goes smoothly between. `factors` divides
    frequency i by `factors[i]`, as a GGUF file stores the result of `llama3`.
    """

    kind: Literal["linear", "llama3", "factors"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter as declared: it starts as `mean + std * normal`."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    """Logical axis names, one per dimension; `ste_jax.sharding.RULES` maps them to mesh axes."""
    mean: float = 0.0
    std: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder of the Llama architecture. Raises `ValueError` for sizes that cannot be."""

    model_type: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, a positive integer is needed")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs")
        scaling = self.rope_scaling
        if scaling and scaling.kind == "factors" and len(scaling.factors) != self.head_dim // 2:
            raise ValueError(
                f"{len(scaling.factors)} rope factors, head_dim {self.head_dim} needs "
                f"{self.head_dim // 2}"
            )

    def parameters(self) -> dict[str, Parameter]:
        """Every parameter by its path; those of a layer are stacked and begin with `layers.`."""
        sizes = {
            "layers": self.num_layers,
            "vocab": self.vocab_size,
            "embed": self.hidden_size,
            "q_heads": self.num_heads,
            "kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "mlp": self.intermediate_size,
        }

        def declare(axes: str, mean: float = 0.0, std: float = 0.0) -> Parameter:
            names = tuple(axes.split())
            return Parameter(
                shape=tuple(sizes[name] for name in names), axes=names, mean=mean, std=std
            )

        # Matrices start so that a normalized input gives outputs of unit variance.
        wide = self.hidden_size**-0.5
        declared = {
            "embed": declare("vocab embed", std=wide),
            "final_norm": declare("embed", mean=1.0),
            "layers.attention_norm": declare("layers embed", mean=1.0),
            "layers.q": declare("layers embed q_heads head_dim", std=wide),
            "layers.k": declare("layers embed kv_heads head_dim", std=wide),
            "layers.v": declare("layers embed kv_heads head_dim", std=wide),
            "layers.o": declare(
                "layers q_heads head_dim embed", std=(self.num_heads * self.head_dim) ** -0.5
            ),
            "layers.mlp_norm": declare("layers embed", mean=1.0),
            "layers.gate": declare("layers embed mlp", std=wide),
            "layers.up": declare("layers embed mlp", std=wide),
            "layers.down": declare("layers mlp embed", std=self.intermediate_size**-0.5),
        }
        if not self.tie_embeddings:
            declared["unembed"] = declare("vocab embed", std=wide)
        if self.attention_bias:
            declared["layers.q_bias"] = declare("layers q_heads head_dim")
            declared["layers.k_bias"] = declare("layers kv_heads head_dim")
            declared["layers.v_bias"] = declare("layers kv_heads head_dim")
            declared["layers.o_bias"] = declare("layers embed")
        if self.mlp_bias:
            declared["layers.gate_bias"] = declare("layers mlp")
            declared["layers.up_bias"] = declare("layers mlp")
            declared["layers.down_bias"] = declare("layers embed")
        return declared

    def parameter_count(self) -> int:
        """Number of parameters; a tied embedding counts once."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters().values())

    @property
    def flops_per_token(self) -> int:
        """FLOPs of one token's forward pass without attention scores: 2 per matmul parameter.

        The input embedding is a lookup and costs nothing; a tied one is counted as the output
        matrix.
        """
        lookup = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        return 2 * (self.parameter_count() - lookup)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "model config") -> ModelConfig:
        """The inverse of `to_dict`. Raises `RequestError`, led by `where`, for a wrong one."""
        values = dict(values)
        try:
            if values.get("rope_scaling") is not None:
                scaling = dict(values["rope_scaling"])
                scaling["factors"] = tuple(scaling.get("factors", ()))
                values["rope_scaling"] = RopeScaling(**scaling)
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise RequestError(f"{where}: {error}") from error
