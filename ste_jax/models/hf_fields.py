"""How are the fields of a Hugging Face `config.json` read, so that none is passed over?

A field that would change the computation in a way that is not known here is refused by name: a
model that loads is the model that was meant. What families have in common is read here: the sizes,
and the rotary embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ste_jax.errors import RequestError
from ste_jax.models.config import LayerKind, RopeScaling

# Fields that say how the model was made, is stored, trained or sampled, not what it computes.
_WITHOUT_EFFECT = {
    "_name_or_path",
    "_sliding_window_pattern",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "cache_implementation",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "is_llama_config",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
}


class Fields:
    """The fields of a config, of which every one is to be read or known to be without effect."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._read: set[str] = set(_WITHOUT_EFFECT)
        self.where = where

    def take(self, key: str, default: Any = None) -> Any:
        """The field's value; `default` where it is missing or null."""
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The field's value. Raises `RequestError` where there is none."""
        value = self.take(key)
        if value is None:
            raise RequestError(f"{self.where}: {key} is missing")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """The field's value, a positive integer. Raises `RequestError` for another."""
        value = self.need(key) if default is None else self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(key, "a positive integer is needed")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """The field's value, a positive number. Raises `RequestError` for another."""
        value = self.need(key) if default is None else self.take(key, default)
        return positive(value, key, self.where)

    def group(self, key: str) -> dict[str, Any]:
        """The field's value, an object; empty where there is none."""
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise self.refuse(key, "an object is expected")
        return dict(value)

    def nullable(self, key: str, default: Any) -> Any:
        """The field's value, null among them; `default` only where it is missing."""
        self._read.add(key)
        return self._values.get(key, default)

    def capped(self, key: str, default: float | None) -> float | None:
        """A soft cap: null is none."""
        value = self.nullable(key, default)
        return None if value is None else positive(value, key, self.where)

    def window(self, default: int | None, *, needed: bool = False) -> int | None:
        """The window of local layers; null is none. Raises `RequestError` where one is needed."""
        if self.nullable("sliding_window", default) is not None:
            return self.size("sliding_window", default)
        if needed:
            raise self.refuse("sliding_window", "and this family's local layers need one")
        return None

    def refuse(self, key: str, why: str) -> RequestError:
        """The error that names the field."""
        return RequestError(f"{self.where}: {key} is {self._values.get(key)!r}, {why}")

    def only(self, key: str, *allowed: Any) -> None:
        """Refuses the field where it is there and none of `allowed`."""
        if self.take(key, allowed[0]) not in allowed:
            told = " or ".join(map(str, allowed))
            raise self.refuse(key, f"only {told} is supported")

    def finish(self) -> None:
        """Refuses what nobody has read. A field that is off (null, false, 0, empty) says that
        nothing unusual is asked for."""
        for key, value in self._values.items():
            if key not in self._read and value:
                raise self.refuse(key, "a field that is not known here and may change the result")


def read_shape(fields: Fields, **defaults: Any) -> dict[str, Any]:
    """What all families have; `defaults` of fields by name, others must be there."""

    hidden = fields.size("hidden_size", defaults.get("hidden_size"))
    heads = fields.size("num_attention_heads", defaults.get("num_attention_heads"))
    if fields.take("head_dim", defaults.get("head_dim")) is not None:
        head_dim = fields.size("head_dim", defaults.get("head_dim"))
    elif hidden % heads:
        raise fields.refuse("hidden_size", f"not a multiple of num_attention_heads {heads}")
    else:
        head_dim = hidden // heads
    kv_heads = heads
    if fields.nullable("num_key_value_heads", defaults.get("num_key_value_heads")) is not None:
        kv_heads = fields.size("num_key_value_heads", defaults.get("num_key_value_heads"))
    if heads % kv_heads:
        raise RequestError(
            f"{fields.where}: num_attention_heads {heads} is no multiple of num_key_value_heads "
            f"{kv_heads}"
        )
    if head_dim % 2:
        raise RequestError(
            f"{fields.where}: head_dim is {head_dim}, odd, and rotary embedding turns pairs"
        )
    return {
        "vocab_size": fields.size("vocab_size", defaults.get("vocab_size")),
        "hidden_size": hidden,
        "num_layers": fields.size("num_hidden_layers", defaults.get("num_hidden_layers")),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_position": fields.size(
            "max_position_embeddings", defaults.get("max_position_embeddings", 2048)
        ),
        "norm_eps": fields.number("rms_norm_eps", defaults.get("rms_norm_eps")),
        "tie_embeddings": bool(
            fields.take("tie_word_embeddings", defaults.get("tie_word_embeddings", False))
        ),
    }


def only_silu(fields: Fields) -> None:
    """Refuses any other activation."""
    fields.only("hidden_act", "silu")


# ---------------------------------------------------------------------------------------------
# Rotary embedding


def read_rope(fields: Fields, max_position: int, theta: float = 10000.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a model that has one kind of rotary embedding."""
    # transformers 5 has one mapping for all that is rotary, before it there were two fields.
    told, scaling = fields.group("rope_parameters"), fields.group("rope_scaling")
    thetas = [each.pop("rope_theta", None) for each in (told, scaling)]
    thetas = [each for each in (*thetas, fields.take("rope_theta")) if each is not None]
    if len(set(thetas)) > 1:
        raise fields.refuse("rope_theta", "and another place says otherwise")
    if told and scaling and told != scaling:
        raise fields.refuse("rope_scaling", "and rope_parameters says otherwise")
    rope, theta = scaling or told, thetas[0] if thetas else theta
    return {
        "rope_theta": positive(theta, "rope_theta", fields.where),
        "rope_scaling": read_rope_scaling(rope, max_position, fields.where),
    }


def positive(value: Any, key: str, where: str) -> float:
    """The value of `key`. Raises `RequestError` where it is no number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise RequestError(f"{where}: {key} is {value!r}, a number above 0 is needed")
    return float(value)


def read_rope_scaling(rope: dict[str, Any], max_position: int, where: str) -> RopeScaling | None:
    """The scaling that a rotary mapping asks for. Raises `RequestError` for one not known here."""
    rope = dict(rope)
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
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
        return positive(rope.pop(key), key, f"{where}: rope scaling {kind!r}")

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
    """In the form that all versions of transformers read."""
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
