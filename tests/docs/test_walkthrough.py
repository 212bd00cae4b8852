"""docs/walkthrough.md is true: its Python and its `ste` commands run on a finished run."""

from __future__ import annotations

import re

from tests.docs import pages

PAGE = "docs/walkthrough.md"


def test_the_python_of_the_walkthrough(finished, monkeypatch):
    run, _ = finished
    monkeypatch.setenv("RUN", str(run.root))
    names: dict = {}
    blocks = [block for _, block in pages.blocks(PAGE, "python")]
    assert len(blocks) >= 8
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE} block {number}", "exec"), names)


def test_the_commands_of_the_walkthrough(finished, monkeypatch, capsys):
    run, _ = finished
    monkeypatch.setenv("RUN", str(run.root))
    blocks = [block for _, block in pages.blocks(PAGE, "sh") if block.startswith("ste ")]
    assert blocks
    for block in blocks:
        pages.run_shell(block)
    assert "votes: a " in capsys.readouterr().out


def test_every_function_that_is_named_is_there():
    import importlib

    pattern = r"`((?:stages|pipeline|evaluation|records)\.[a-z_]+(?:\.[a-z_]+)*)`"
    named = re.findall(pattern, pages.text(PAGE))
    named = [name for name in named if not name.endswith(".json")]
    assert len(named) >= 8
    for name in named:
        module, _, function = f"ste_jax.{name}".rpartition(".")
        assert hasattr(importlib.import_module(module), function), name
