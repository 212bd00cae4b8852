"""What does the package bring along, and by which names is it called in a config?"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

SHIPPED = {
    "builtin": "data/instructions.jsonl",
    "pico": "pico/shipped/instructions.jsonl",
    "pico/same-task": "pico/shipped/same-task.jsonl",
    "pico/other-task": "pico/shipped/other-task.jsonl",
}
"""Instructions and labelled pairs."""


def path_of(name: str) -> Path:
    """The file that `name` means: a shipped one, or one of that path."""
    if name not in SHIPPED:
        return Path(name)
    return Path(str(resources.files("ste_jax"))) / SHIPPED[name]
