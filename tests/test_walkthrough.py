"""docs/walkthrough.md is true: its Python and its `ste` commands run on a finished run."""

from __future__ import annotations

import os
import re
import shlex

from ste_jax.cli import main
from tests.running import REPOSITORY

TEXT = (REPOSITORY / "docs" / "walkthrough.md").read_text()


def test_the_python_of_the_walkthrough(finished, monkeypatch):
    run, _ = finished
    monkeypatch.setenv("RUN", str(run.root))
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 8
    for number, block in enumerate(blocks):
        exec(compile(block, f"walkthrough block {number}", "exec"), names)


def test_the_commands_of_the_walkthrough(finished, monkeypatch, capsys):
    run, _ = finished
    monkeypatch.setenv("RUN", str(run.root))
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("ste ")]
    assert commands
    for command in commands:
        assert main(shlex.split(os.path.expandvars(command))[1:]) == 0
    assert "votes: a " in capsys.readouterr().out


def test_every_function_that_is_named_is_there():
    import importlib

    named = re.findall(r"`((?:stages|pipeline|evaluation|records)\.[a-z_]+(?:\.[a-z_]+)*)`", TEXT)
    named = [name for name in named if not name.endswith(".json")]
    assert len(named) >= 8
    for name in named:
        module, _, function = f"ste_jax.{name}".rpartition(".")
        assert hasattr(importlib.import_module(module), function), name
