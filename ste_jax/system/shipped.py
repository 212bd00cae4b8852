"""What does the package bring along, and by which names is it called in a config?"""

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
    """The file that `name` means: a shipped one, or one of that path."""
    return _inside(SHIPPED[name]) if name in SHIPPED else Path(name)


def model_of(name: str) -> Path | None:
    """The directory of a shipped model, None if `name` is none."""
    return _inside(MODELS[name]) if name in MODELS else None


def _inside(path: str) -> Path:
    return Path(str(resources.files("ste_jax"))) / path
