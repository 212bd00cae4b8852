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

from ste_jax.system.errors import RequestError


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
class LayerKind:
    """What can differ between the attention of one layer and that of another."""

    window: int | None = None
    """How many keys a query sees, itself the last of them; None: all before it."""
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None


INPUT_AXES = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1, "router": 1}
"""By matrix of a layer: how many of its axes belong to the input; they precede the output's."""
LORA_A, LORA_B = "_lora_a", "_lora_b"
"""Ends of the names of a matrix's two LoRA matrices: the first takes the input, the second gives
the output."""
SCALE = "_scale"
"""End of the name of what the outputs of a matrix in int8 are multiplied by; see
`ste_jax.models.int8`."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Small matrices beside large ones (LoRA): W x becomes W x + alpha / rank * B A x."""

    rank: int
    alpha: float
    matrices: tuple[str, ...]

    @property
    def scale(self) -> float:
        """What their product is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter as declared: it starts as `mean + std * normal`."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    """Logical axis names, one per dimension; `parallel.sharding.RULES` maps them to mesh axes."""
    mean: float = 0.0
    std: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder of one of the families. Raises `ValueError` for sizes that cannot be."""

    model_type: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    """The MLP's inner size; of each expert where there are experts."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    kinds: tuple[LayerKind, ...] = (LayerKind(),)
    """The kinds of layer, one after another and again from the first."""
    norm_eps: float = 1e-5
    norm_plus_one: bool = False
    """Norms multiply by 1 + weight, in float32 (Gemma); else by the weight, in the input's type."""
    post_norms: bool = False
    """The outputs of attention and MLP are normed, too, before they are added (Gemma)."""
    qk_norm: bool = False
    """Queries and keys are normed head by head (Qwen3, Gemma 3)."""
    tie_embeddings: bool = False
    scale_embeddings: bool = False
    """Embeddings are multiplied by the root of `hidden_size` (Gemma)."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    query_scalar: float | None = None
    """Scores are divided by its root; None: `head_dim`."""
    attention_softcap: float | None = None
    """Scores x become cap * tanh(x / cap) (Gemma 2)."""
    final_softcap: float | None = None
    """Logits x become cap * tanh(x / cap) (Gemma 2)."""
    experts: int = 0
    """How many MLPs a router chooses from for each token; 0: one MLP, and no router."""
    experts_per_token: int = 0
    normalize_experts: bool = True
    """The chosen experts' shares are made to add up to 1."""
    lora: Lora | None = None
    """Which LoRA matrices there are while they are trained; no checkpoint has any."""

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
        if not self.kinds:
            raise ValueError("kinds is empty")
        for kind in self.kinds:
            if kind.window is not None and (not isinstance(kind.window, int) or kind.window < 1):
                raise ValueError(f"window is {kind.window!r}, a positive integer is needed")
            scaling = kind.rope_scaling
            if scaling and scaling.kind == "factors" and len(scaling.factors) != self.head_dim // 2:
                raise ValueError(
                    f"{len(scaling.factors)} rope factors, head_dim {self.head_dim} needs "
                    f"{self.head_dim // 2}"
                )
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, of {self.experts} experts"
            )

    @property
    def groups(self) -> tuple[range, ...]:
        """The layers whose parameters are stacked together.

        First those at each place of the cycle of kinds, as often as the cycle fits; then every
        layer of the rest by itself.
        """
        cycle = len(self.kinds)
        whole = self.num_layers // cycle * cycle
        places = [range(place, whole, cycle) for place in range(self.cycle_groups)]
        return (*places, *(range(layer, layer + 1) for layer in range(whole, self.num_layers)))

    @property
    def cycle_groups(self) -> int:
        """How many of the first groups are places of the cycle, and so equally long."""
        return len(self.kinds) if self.num_layers >= len(self.kinds) else 0

    def kind_of(self, layer: int) -> LayerKind:
        """The kind of a layer."""
        return self.kinds[layer % len(self.kinds)]

    def parameters(self) -> dict[str, Parameter]:
        """Every parameter by its path: `embed`, or `layers.0.q` for those of a group of layers,
        stacked along their first axis."""
        wide = self.hidden_size**-0.5
        declared = {
            "embed": self._declare("vocab embed", std=wide),
            "final_norm": self._declare("embed", mean=self._norm_mean),
        }
        of_a_layer = self._layer_parameters()
        for group, layers in enumerate(self.groups):
            for name, one in of_a_layer.items():
                declared[f"layers.{group}.{name}"] = dataclasses.replace(
                    one, shape=(len(layers), *one.shape), axes=("layers", *one.axes)
                )
        if not self.tie_embeddings:
            declared["unembed"] = self._declare("vocab embed", std=wide)
        return declared

    @property
    def _norm_mean(self) -> float:
        return 0.0 if self.norm_plus_one else 1.0

    def _declare(self, axes: str, mean: float = 0.0, std: float = 0.0) -> Parameter:
        sizes = {
            "vocab": self.vocab_size,
            "embed": self.hidden_size,
            "q_heads": self.num_heads,
            "kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "mlp": self.intermediate_size,
            "experts": self.experts,
            "lora": self.lora.rank if self.lora else 0,
        }
        names = tuple(axes.split())
        return Parameter(shape=tuple(sizes[name] for name in names), axes=names, mean=mean, std=std)

    def _layer_parameters(self) -> dict[str, Parameter]:
        """The parameters of one layer by name."""
        declare, one = self._declare, self._norm_mean
        # Matrices start so that a normalized input gives outputs of unit variance.
        wide, inner = self.hidden_size**-0.5, self.intermediate_size**-0.5
        declared = {
            "attention_norm": declare("embed", mean=one),
            "q": declare("embed q_heads head_dim", std=wide),
            "k": declare("embed kv_heads head_dim", std=wide),
            "v": declare("embed kv_heads head_dim", std=wide),
            "o": declare("q_heads head_dim embed", std=(self.num_heads * self.head_dim) ** -0.5),
            "mlp_norm": declare("embed", mean=one),
        }
        if self.experts:
            declared["router"] = declare("embed experts", std=wide)
            declared["expert_gate"] = declare("experts embed mlp", std=wide)
            declared["expert_up"] = declare("experts embed mlp", std=wide)
            declared["expert_down"] = declare("experts mlp embed", std=inner)
        else:
            declared["gate"] = declare("embed mlp", std=wide)
            declared["up"] = declare("embed mlp", std=wide)
            declared["down"] = declare("mlp embed", std=inner)
        if self.qk_norm:
            declared["q_norm"] = declare("head_dim", mean=one)
            declared["k_norm"] = declare("head_dim", mean=one)
        if self.post_norms:
            declared["attention_post_norm"] = declare("embed", mean=one)
            declared["mlp_post_norm"] = declare("embed", mean=one)
        if self.qkv_bias:
            declared["q_bias"] = declare("q_heads head_dim")
            declared["k_bias"] = declare("kv_heads head_dim")
            declared["v_bias"] = declare("kv_heads head_dim")
        if self.o_bias:
            declared["o_bias"] = declare("embed")
        if self.mlp_bias:
            declared["gate_bias"] = declare("mlp")
            declared["up_bias"] = declare("mlp")
            declared["down_bias"] = declare("embed")
        for name in self.lora.matrices if self.lora else ():
            axes, inputs = declared[name].axes, INPUT_AXES[name]
            declared[name + LORA_A] = declare(
                " ".join((*axes[:inputs], "lora")), std=declared[name].std
            )
            declared[name + LORA_B] = declare(" ".join(("lora", *axes[inputs:])))
        return declared

    def parameter_count(self) -> int:
        """Number of parameters; a tied embedding counts once."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters().values())

    @property
    def flops_per_token(self) -> int:
        """FLOPs of one token's forward pass without attention scores: 2 per matmul parameter.

        The input embedding is a lookup and costs nothing; a tied one is counted as the output
        matrix. Of the experts those count that a token meets.
        """
        lookup = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        idle = (self.experts - self.experts_per_token) * 3 * self.hidden_size
        unmet = idle * self.intermediate_size * self.num_layers
        return 2 * (self.parameter_count() - lookup - unmet)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "model config") -> ModelConfig:
        """The inverse of `to_dict`, of the file `where`.

        Raises:
          RequestError: a key is missing or unknown to this version, or a value is wrong.
        """
        try:
            _refuse_unknown(cls, values, where)
            kinds = tuple(_kind_from_dict(kind, where) for kind in values.get("kinds", ({},)))
            return cls(**{**values, "kinds": kinds, "lora": None})
        except (AttributeError, TypeError, ValueError) as error:
            raise RequestError(f"{where}: {error}") from error


def _refuse_unknown(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Refuses keys that a later version wrote: to pass over them could change what is computed."""
    unknown = set(values) - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise RequestError(
            f"{where}: this version does not know the model's {', '.join(sorted(unknown))}; read "
            "it with the later version that wrote it"
        )


def _kind_from_dict(values: Mapping[str, Any], where: str) -> LayerKind:
    values = dict(values)
    _refuse_unknown(LayerKind, values, where)
    if values.get("rope_scaling") is not None:
        scaling = dict(values["rope_scaling"])
        _refuse_unknown(RopeScaling, scaling, where)
        scaling["factors"] = tuple(scaling.get("factors", ()))
        values["rope_scaling"] = RopeScaling(**scaling)
    return LayerKind(**values)
