"""Which files come with the package, and by which names does a config call them?"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

SHIPPED = {
    "builtin": "stages/shipped/instructions.jsonl",
    "pico": "pico/shipped/instructions.jsonl",
    "pico/same-task": "pico/shipped/same-task.jsonl",
    "pico/other-task": "pico/shipped/other-task.jsonl",
}
"""Instructions and labelled pairs."""
MODELS = {"pico": "pico/shipped/seed"}
"""Hugging Face directories."""


def path_of(name: str) -> Path:
    """The path of the shipped file `name`, or, if there is none, `name` as a path."""
    return _inside(SHIPPED[name]) if name in SHIPPED else Path(name)


def model_of(name: str) -> Path | None:
    """The directory of the shipped model `name`; None if there is none of that name."""
    return _inside(MODELS[name]) if name in MODELS else None


def _inside(path: str) -> Path:
    return Path(str(resources.files("ste_jax"))) / path
