"""docs/python.md is true: its Python runs on a finished run."""

from __future__ import annotations

import re
import shutil

from tests.docs import pages

PAGE = "docs/python.md"


def test_the_python_of_the_page(finished, tmp_path, monkeypatch, capsys):
    run, _ = finished
    shutil.copytree(run.root, tmp_path / "run")
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    names: dict = {}
    blocks = [block for _, block in pages.blocks(PAGE, "python")]
    assert len(blocks) >= 6
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE} block {number}", "exec"), names)
    assert "answer a shown first" in capsys.readouterr().out


def test_the_readme_shows_what_there_is():
    import ste_jax

    used = set(re.findall(r"ste_jax\.([a-z]\w*)\(", pages.text(PAGE) + pages.text("README.md")))
    assert {"load_judge", "open_run", "run_config", "restore_parameters"} <= used
    assert used <= set(ste_jax.__all__)
