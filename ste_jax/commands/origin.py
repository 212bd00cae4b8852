"""What does a seed say of itself that a judge's model card must repeat: its name, its licence?

Nothing is fetched but, for a model of the Hugging Face hub, its page's facts. What cannot be found
is left out: a card must not guess a licence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ste_jax.checkpoints.card import read_card
from ste_jax.model_io.sources import Source, at_hand
from ste_jax.run.best import locate
from ste_jax.stages.judge_card import FILE
from ste_jax.system import shipped
from ste_jax.system.errors import SteError
from ste_jax.system.yaml_notation import from_yaml
from ste_jax.tokenization.gguf_metadata import read_gguf_metadata

LICENCE_KEYS = ("license", "license_name", "license_link")
"""The keys of a model card on the hub that state a licence."""
_PATIENCE = 10.0
"""How many seconds the hub has to answer."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of a seed."""

    base_model: str = ""
    """Its name on the Hugging Face hub, OWNER/NAME; empty if it has none that is known."""
    licence: Mapping[str, str] = field(default_factory=dict)
    """Some of `LICENCE_KEYS`; empty if the seed states none that could be read."""
    stated_in: str = ""
    """Where the licence is stated."""


def origin_of(source: str, depth: int = 0) -> Origin:
    """What the model that `source` names says of itself; never raises."""
    name = source.removeprefix("hf:")
    if name != source:
        return Origin(base_model=name, licence=_of_hub(name), stated_in="its page on the hub")
    if shipped.model_of(source) is not None:
        return Origin(licence={"license": "apache-2.0"}, stated_in="ste_jax, which it is a part of")
    try:
        found = at_hand(source)
        if found is None:
            return Origin()
        if found.kind == "run":
            found = locate(str(found.path))
        if found.kind == "checkpoint" and depth < 8:  # a judge may be the seed of the next run
            return origin_of(str(read_card(found.path)["provenance"].get("source", "")), depth + 1)
        return _of_files(found)
    except (SteError, OSError):
        return Origin()


def _of_files(found: Source) -> Origin:
    place = Path(os.fspath(found.path))
    if found.kind == "gguf":
        values = read_gguf_metadata(place)
        keys = {"license": "", "license_name": ".name", "license_link": ".link"}
        stated = {key: values.get(f"general.license{end}") for key, end in keys.items()}
        return Origin(licence=_texts(stated), stated_in="its GGUF file")
    if found.kind != "hf" or not (place / "README.md").exists():
        return Origin()
    front = _front_matter((place / "README.md").read_text(encoding="utf-8", errors="replace"))
    base = front.get("base_model") if (place / FILE).exists() else None
    return Origin(
        base_model=base if isinstance(base, str) else "",
        licence=_texts(front),
        stated_in="its model card",
    )


def _of_hub(name: str) -> dict[str, str]:
    import huggingface_hub  # slow to import, and most seeds are elsewhere

    try:
        data = huggingface_hub.model_info(name, timeout=_PATIENCE).card_data
        return _texts(data.to_dict() if data else {})  # type: ignore[no-untyped-call]
    except Exception:  # the hub's client has dozens of errors; without an answer nothing is known
        return {}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    stated = {key: values.get(key) for key in LICENCE_KEYS}
    return {key: value for key, value in stated.items() if isinstance(value, str) and value}


def _front_matter(text: str) -> Mapping[str, Any]:
    """The YAML at the head of a model card; empty if there is none that can be read."""
    head = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    try:
        values = from_yaml(head[1]) if head else None
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
