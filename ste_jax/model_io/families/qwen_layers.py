"""What do Qwen's configs say of windows?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ste_jax.model_io.families.layer_kinds import (
    GLOBAL,
    LOCAL,
    typed_layers,
    types_to_hf,
    window_of,
)
from ste_jax.model_io.families.rope import read_rope, rope_to_hf
from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import LayerKind, ModelConfig


def qwen_window(fields: Fields) -> int | None:
    """The window of the layers that have one; None where that is switched off."""
    window = fields.window(4096)
    return window if fields.flag("use_sliding_window") else None


def qwen_kinds(fields: Fields, shape: Mapping[str, Any]) -> tuple[LayerKind, ...]:
    """The kinds of layer: the first ones without a window, or as `layer_types` says."""
    rope = read_rope(fields, shape["max_position"])
    window = qwen_window(fields)
    first = fields.take("max_window_layers", 28)
    return typed_layers(
        fields,
        shape["num_layers"],
        lambda layer: GLOBAL if window is None or layer < first else LOCAL,
        {GLOBAL: LayerKind(**rope)}
        | ({} if window is None else {LOCAL: LayerKind(window=window, **rope)}),
    )


def qwen_kinds_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen_kinds`."""
    window = window_of(config)
    types = types_to_hf(config)
    whole = [*types, LOCAL].index(LOCAL)
    # What older versions of transformers, which do not know layer_types, go by, if it can say it.
    older = {} if GLOBAL in types[whole:] else {"max_window_layers": whole}
    return {
        **rope_to_hf(config.kinds[0]),
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": types,
        **older,
    }
