"""Does a file fit in a sitting, and a function on a screen?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(TOP).as_posix()
    for folder in ("ste_jax", "tests", "benchmarks")
    for path in (TOP / folder).rglob("*.py")
)
MOST_LINES = 450
MOST_OF_A_FUNCTION = 60
LONG: dict[str, str] = {}
"""A file, or `FILE:FUNCTION`, that is longer, and why it is better so."""


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function, those inside of others among them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def too_long(file: str) -> set[str]:
    """What of a file is longer than it should be."""
    text = (TOP / file).read_text(encoding="utf-8")
    found = {f"{file}:{name}" for name, n in functions(text) if n > MOST_OF_A_FUNCTION}
    return found | ({file} if len(text.splitlines()) > MOST_LINES else set())


@pytest.mark.parametrize("file", FILES)
def test_no_file_and_no_function_is_too_long(file: str) -> None:
    assert too_long(file) - set(LONG) == set()


def test_every_exception_is_one() -> None:
    assert set(LONG) - {place for file in FILES for place in too_long(file)} == set()


def test_a_function_is_measured_from_its_name_to_its_end() -> None:
    text = "def a():\n    def b(\n        c,\n    ): ...\n    return b\nx = 1\nasync def d(): ...\n"
    assert dict(functions(text)) == {"a": 5, "b": 3, "d": 1}
