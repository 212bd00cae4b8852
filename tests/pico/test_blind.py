"""Does what is learnt depend on anything that is only measured?"""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.running import run, write_config
from tests.test_labelled_sets import write_pairs


def made(root: Path) -> dict[str, bytes]:
    """Every file of a run that something is learnt from, or that was learnt."""
    names = ("instructions", "pairs", "iterations")
    files = [path for name in names for path in (root / name).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in files
        if (path.suffix == ".parquet" and "evaluation" not in path.parts)
        or path.name in ("curation.json", "finetune.json")
    }  # fmt: skip


def test_labelled_sets_and_their_checker_change_nothing_that_is_learnt(tmp_path: Path) -> None:
    plain, measured = tmp_path / "plain", tmp_path / "measured"
    config = write_config(tmp_path, iterations=1)
    assert run(["run", str(config), "--dir", str(plain)]) == 0
    values = yaml.safe_load(config.read_text())
    write_pairs(tmp_path / "words.jsonl", 12)
    values["evaluate"]["sets"] = [
        {"name": "words", "data": str(tmp_path / "words.jsonl"), "traces": "pico"}
    ]
    config.write_text(yaml.safe_dump(values))
    assert run(["run", str(config), "--dir", str(measured)]) == 0
    assert (measured / "iterations" / "1" / "evaluation" / "sets" / "words").is_dir()
    assert "sound" in (measured / "iterations" / "1" / "evaluation.json").read_text()
    kept = made(plain)
    assert any("training" in name for name in kept) and "iterations/1/finetune.json" in kept
    assert made(measured) == kept
