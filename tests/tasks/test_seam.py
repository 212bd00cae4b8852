"""Does nothing but a task know what a verdict looks like?"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ste_jax

PACKAGE = Path(ste_jax.__file__).parent
LETTERS = {"A", "B", "AB", "BA"}
OTHERS = {
    "system/display.py": "the bytes of work",
    "system/progress_lines.py": "bytes",
    "tokenization/gguf_metadata.py": "a byte, in a format",
    "tokenization/sentencepiece_conversion.py": "a text to try a tokenizer on",
}
"""Where such a text is no verdict, and what it is."""


def texts(path: Path) -> list[str]:
    """The texts in a module's code, but for what only explains it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    explains = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [
        node.value for node in constants if isinstance(node.value, str) and id(node) not in explains
    ]


def spells_a_verdict(text: str) -> bool:
    return text in LETTERS or re.search(r"(?<!\\)\[\[|\\\[\\\[", text) is not None


def test_no_module_outside_tasks_spells_a_verdict() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "tasks" and any(map(spells_a_verdict, texts(path)))
    }
    assert found == set(OTHERS)


def test_the_tasks_do() -> None:
    assert any(map(spells_a_verdict, texts(PACKAGE / "tasks" / "pairwise.py")))
    assert spells_a_verdict(r"\[\[(\d+)\]\]")
