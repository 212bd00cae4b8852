"""docs/python.md is true: its Python runs on a finished run."""

from __future__ import annotations

import re
import shutil

from tests.running import REPOSITORY

TEXT = (REPOSITORY / "docs" / "python.md").read_text()


def test_the_python_of_the_page(finished, tmp_path, monkeypatch, capsys):
    run, _ = finished
    shutil.copytree(run.root, tmp_path / "run")
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 6
    for number, block in enumerate(blocks):
        exec(compile(block, f"python.md block {number}", "exec"), names)
    assert "answer a shown first" in capsys.readouterr().out


def test_the_readme_shows_what_there_is():
    import ste_jax

    used = set(re.findall(r"ste_jax\.([a-z]\w*)\(", TEXT + (REPOSITORY / "README.md").read_text()))
    assert {"load_judge", "open_run", "run_config", "restore_parameters"} <= used
    assert used <= set(ste_jax.__all__)
