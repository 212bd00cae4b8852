"""What makes a model family: how are its configs read, and what are its weights called?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ste_jax.model_io.families.hf_fields import hf_fields
from ste_jax.model_io.families.weights import Weight
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import LayerKind, ModelConfig, RopeScaling
from ste_jax.system.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class GGUFForm:
    """What llama.cpp makes of a family."""

    architecture: str
    particular: Callable[[Fields, Mapping[str, Any], RopeScaling | None], dict[str, Any]]
    """(metadata, sizes, rope scaling) -> the fields of `ModelConfig` beside the sizes."""
    interleaved: bool = False
    """The rows of q and k are in the order of interleaved rotary pairs."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is particular to a family."""

    config_from_hf: Callable[[Fields], ModelConfig]
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    weights: tuple[Weight, ...]
    root: str = ""
    """What stands before all HF names."""
    gguf: GGUFForm | None = None
    """What llama.cpp makes of it; None where it has no form of its own."""
    foreign: tuple[str, ...] = ()
    """Beginnings of the names of tensors that belong to another part of a larger model."""

    def read_config(self, values: Mapping[str, Any], where: str) -> ModelConfig:
        """Our config of the contents of a `config.json` at `where`.

        Raises `RequestError` for a field that is missing, wrong, or not known here and on.
        """
        fields = hf_fields(values, where)
        try:
            config = self.config_from_hf(fields)
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
            raise RequestError(f"{where}: {error}") from error
        fields.finish()
        return config


def one_kind(
    metadata: Fields, sizes: Mapping[str, Any], scaling: RopeScaling | None
) -> dict[str, Any]:
    """A `GGUFForm.particular` for families whose layers are all alike and have no window."""
    theta = metadata.number("rope.freq_base", 10000.0)
    return {"kinds": (LayerKind(rope_theta=theta, rope_scaling=scaling),)}


def experts(metadata: Fields) -> dict[str, Any]:
    """How many experts a mixture has, and how many each token goes to, by GGUF metadata."""
    return {
        "experts": metadata.size("expert_count"),
        "experts_per_token": metadata.size("expert_used_count"),
    }
