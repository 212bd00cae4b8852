"""What does a `config.json` say of rotary embedding?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ste_jax.model_io.strict_fields import Fields, positive
from ste_jax.models.config import LayerKind, RopeScaling
from ste_jax.system.errors import RequestError


def read_rope(fields: Fields, max_position: int, theta: float = 10000.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a model that has one kind of rotary embedding."""
    # transformers 5 has one mapping for all that is rotary, before it there were two fields.
    one, scaling = fields.group("rope_parameters"), fields.group("rope_scaling")
    thetas = [each.pop("rope_theta", None) for each in (one, scaling)]
    thetas = [each for each in (*thetas, fields.take("rope_theta")) if each is not None]
    if len(set(thetas)) > 1:
        raise fields.refuse("rope_theta", "and another place says otherwise")
    if one and scaling and one != scaling:
        raise fields.refuse("rope_scaling", "and rope_parameters says otherwise")
    rope, theta = scaling or one, thetas[0] if thetas else theta
    outside = fields.take("original_max_position_embeddings")
    if kind_of_rope(rope) == "llama3" and outside is not None:
        inside = rope.setdefault("original_max_position_embeddings", outside)
        if inside != outside:
            raise fields.refuse("original_max_position_embeddings", f"in rope scaling {inside}")
    return {
        "rope_theta": positive(theta, f"{fields.where}: rope_theta"),
        "rope_scaling": read_rope_scaling(rope, max_position, fields.where),
    }


def kind_of_rope(rope: Mapping[str, Any]) -> Any:
    """The kind of scaling that a rotary mapping names."""
    return rope.get("rope_type") or rope.get("type") or "default"


def read_rope_scaling(rope: dict[str, Any], max_position: int, where: str) -> RopeScaling | None:
    """The scaling that a rotary mapping asks for. Raises `RequestError` for one not known here."""
    kind = kind_of_rope(rope)
    rope = {key: value for key, value in rope.items() if key not in ("rope_type", "type")}
    original = rope.pop("original_max_position_embeddings", None)
    if original is None:
        original = max_position
    if isinstance(original, bool) or not isinstance(original, int) or original < 1:
        raise RequestError(
            f"{where}: original_max_position_embeddings is {original!r}, a positive integer is "
            "needed"
        )

    def number(key: str) -> float:
        if key not in rope:
            raise RequestError(f"{where}: rope scaling {kind!r} lacks {key}")
        return positive(rope.pop(key), f"{where}: rope scaling {kind!r}: {key}")

    known: dict[str, Callable[[], RopeScaling | None]] = {
        "default": lambda: None,
        "linear": lambda: RopeScaling(kind="linear", factor=number("factor")),
        "llama3": lambda: RopeScaling(
            kind="llama3",
            factor=number("factor"),
            low_freq_factor=number("low_freq_factor"),
            high_freq_factor=number("high_freq_factor"),
            original_max_position=original,
        ),
    }
    if kind not in known:
        raise RequestError(
            f"{where}: rope scaling of type {kind!r} is not supported; known are {', '.join(known)}"
        )
    if rope.get("partial_rotary_factor") == 1:
        rope.pop("partial_rotary_factor")
    scaling = known[kind]()
    if scaling and scaling.kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        raise RequestError(
            f"{where}: rope scaling 'llama3': high_freq_factor is not the higher one"
        )
    left = {key: value for key, value in rope.items() if value is not None}
    if left:
        key, value = next(iter(left.items()))
        raise RequestError(
            f"{where}: rope scaling {kind!r} has {key} {value!r}, which is not supported"
        )
    return scaling


def rope_to_hf(kind: LayerKind) -> dict[str, Any]:
    """A layer's rotary embedding in the form that all versions of transformers read."""
    return {"rope_theta": kind.rope_theta, "rope_scaling": _scaling_to_hf(kind.rope_scaling)}


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.kind == "factors":
        raise RequestError(
            "rope scaling by a table of factors (from a GGUF file) has no form in a Hugging Face "
            "config, so this model cannot be written as one"
        )
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return rope
