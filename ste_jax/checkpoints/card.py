"""What does a checkpoint say of itself, so that no other directory is taken for one?

The card, `ste_checkpoint.json`, is written last and is the mark of completeness.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from ste_jax.models.config import ModelConfig
from ste_jax.system.errors import RequestError
from ste_jax.system.version import __version__

CARD = "ste_checkpoint.json"
PARAMETERS = "parameters"
TOKENIZER = "tokenizer"
_FORMAT = 2


def is_checkpoint(path: epath.PathLike) -> bool:
    """Whether there is a complete checkpoint of ours at `path`."""
    try:
        read_card(path)
    except RequestError:
        return False
    return True


def read_card(path: epath.PathLike) -> dict[str, Any]:
    """The card: `model` (of `ModelConfig.to_dict`), `parameters`, `provenance`, `ste_jax`.

    Raises:
      RequestError: there is no complete checkpoint of ours at `path`.
    """
    place = epath.Path(path) / CARD
    try:
        card = json.loads(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(
            f"{path} is not a complete checkpoint: it has no {CARD}, which is written last"
        ) from error
    except ValueError as error:
        raise RequestError(f"{place} is damaged: {error}") from error
    if not isinstance(card, dict) or card.get("format") != _FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise RequestError(f"{place}: format is {found!r}, this version reads {_FORMAT}")
    missing = {"model", "parameters", "provenance"} - set(card)
    if missing:
        raise RequestError(f"{place} is damaged: {', '.join(sorted(missing))} missing")
    return card


def card_of(
    config: ModelConfig, described: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The card of a model whose arrays are `described`."""
    return {
        "format": _FORMAT,
        "ste_jax": __version__,
        "model": config.to_dict(),
        "parameters": dict(described),
        "provenance": dict(provenance),
    }


def parameters_directory(card: Mapping[str, Any]) -> str:
    """The name of the directory, beside the card, that holds the parameters."""
    return str(card.get("directory", PARAMETERS))
