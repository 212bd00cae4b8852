"""Is it said where there is too little data, and is pico kept to its own?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from etils import epath

from ste_jax.cli import main
from ste_jax.config.load import load_config
from ste_jax.config.schema import Config, SelectKnobs
from ste_jax.pipeline.preflight import check_sources
from ste_jax.run.layout import RunDir


def test_pico_is_refused_other_instructions_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "mine.jsonl", tmp_path / "run"
    data.write_text('{"instruction": "Who wrote Emma?"}\n')
    assert main(["run", "pico", f"pool.path=[pico, {data}]", "--dir", str(run)]) == 2
    said = capsys.readouterr().err
    assert "its own small world alone" in said and f"ste init --data {data}" in said
    assert not run.exists()


@pytest.mark.parametrize(
    ("train", "fraction", "said"), [(28, 0.15, "about 8 validation"), (600, 0.08, ""), (28, 0, "")]
)
def test_few_validation_prompts_are_said_before_a_run_begins(
    train: int, fraction: float, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    select = SelectKnobs(train=train, validation_fraction=fraction)
    config: Config = dataclasses.replace(load_config("pico"), select=select)
    check_sources(config, RunDir(epath.Path(tmp_path / "run")))
    found = capsys.readouterr().err
    assert (said in found) if said else not found
