"""Which model families are known?

A family is a file here: how its configs map to ours, and what its weights are called. The
computation of all is one (`ste_jax.models.decoder`).
"""

from __future__ import annotations

from typing import Any

from ste_jax.model_io.families import (
    gemma2,
    gemma3,
    gemma3_text,
    llama,
    mistral,
    mixtral,
    qwen2,
    qwen3,
    qwen3_moe,
)
from ste_jax.model_io.families.family import Family
from ste_jax.system.errors import RequestError

FAMILIES: dict[str, Family] = {
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "gemma2": gemma2.FAMILY,
    "gemma3_text": gemma3_text.FAMILY,
    "gemma3": gemma3.FAMILY,
    "mixtral": mixtral.FAMILY,
    "qwen3_moe": qwen3_moe.FAMILY,
}
"""By `model_type` of `config.json`."""


def family_of(model_type: Any, where: str) -> Family:
    """The family of that name. Raises `RequestError` naming `where` for one that is not known."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise RequestError(
            f"{where}: architecture {model_type!r} is not supported; supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]
