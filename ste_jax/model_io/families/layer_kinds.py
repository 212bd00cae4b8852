"""What does a `config.json` say of layers that differ from each other?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ste_jax.model_io.strict_fields import Fields
from ste_jax.models.config import LayerKind, ModelConfig

LOCAL, GLOBAL = "sliding_attention", "full_attention"
"""The names in `layer_types` of layers with a window, and of those without."""


def _cycle(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest cycle that gives the kinds of all layers."""
    size = next(
        size
        for size in range(1, len(kinds) + 1)
        if all(kind == kinds[index % size] for index, kind in enumerate(kinds))
    )
    return tuple(kinds[:size])


def typed_layers(
    fields: Fields, count: int, default: Callable[[int], str], kinds: Mapping[str, LayerKind]
) -> tuple[LayerKind, ...]:
    """The kinds by `layer_types`; where the file has none, by `default(layer)`."""
    types = fields.words("layer_types") or [default(layer) for layer in range(count)]
    unknown = sorted(set(types) - set(kinds))
    if unknown:
        raise fields.refuse("layer_types", f"{unknown[0]} is not known here")
    if len(types) != count:
        raise fields.refuse("layer_types", f"there are {count} layers")
    return _cycle([kinds[each] for each in types])


def alike(fields: Fields, count: int, kind: LayerKind) -> tuple[LayerKind, ...]:
    """The one kind of a family's layers. Where there are `layer_types`, they must say the same."""
    name = GLOBAL if kind.window is None else LOCAL
    types = fields.words("layer_types")
    if types is not None and (len(types) != count or set(types) != {name}):
        raise fields.refuse("layer_types", f"and all {count} layers are of {name}")
    return (kind,)


def types_to_hf(config: ModelConfig) -> list[str]:
    """What `layer_types` says of a model."""
    kinds = map(config.kind_of, range(config.num_layers))
    return [GLOBAL if kind.window is None else LOCAL for kind in kinds]


def window_of(config: ModelConfig) -> int | None:
    """The window of the layers that have one."""
    return next((kind.window for kind in config.kinds if kind.window is not None), None)
