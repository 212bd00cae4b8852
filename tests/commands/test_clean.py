"""Is what is set aside listed, and removed only where that is agreed to?"""

from __future__ import annotations

from pathlib import Path

import pytest
from etils import epath

from ste_jax.cli import main
from ste_jax.run.layout import RunDir
from tests.golden import archive
from tests.pipeline.test_dry_run import stamps


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with the judgments of other knobs, and a judge."""
    run = archive.unpack("plain", tmp_path) / "run"
    for place, size in (("annotate-ab12/judgments", 3000), ("finetune-cd34/checkpoint", 5_000_000)):
        path = run / "iterations/1/set_aside" / place
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"x" * size)
    inner = run / "iterations/1/set_aside/finetune-cd34/evaluation/set_aside/evaluate-ef56"
    inner.mkdir(parents=True)
    return run


def others(run: Path) -> dict:
    return {path: found for path, found in stamps(run).items() if "set_aside" not in path.parts}


def test_it_is_listed_with_sizes_and_stays_without_a_yes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(run)
    assert main(["clean", str(run)]) == 0
    said = capsys.readouterr()
    *listed, last = said.out.splitlines()
    lines = [line.split() for line in listed]
    aside = run / "iterations/1/set_aside"
    assert lines == [["3", "kB", f"{aside}/annotate-ab12"], ["5", "MB", f"{aside}/finetune-cd34"]]
    assert last == "2 results of other knobs, 5 MB; nothing was removed: say --yes to remove them"
    assert not said.err
    assert stamps(run) == before


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_is_asked(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: bool,
) -> None:
    monkeypatch.setattr("ste_jax.commands.clean.confirmed", lambda question: answer)
    before = others(run)
    assert main(["clean", str(run)]) == 0
    assert (run / "iterations/1/set_aside").exists() == (not answer)
    end = "removed 2 results of other knobs, 5 MB" if answer else "nothing was removed"
    assert capsys.readouterr().out.splitlines()[-1] == end
    assert {path: each for path, each in others(run).items() if path != run / "iterations/1"} == {
        path: each for path, each in before.items() if path != run / "iterations/1"
    }


def test_with_a_yes_it_goes_and_nothing_else_does(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clean", str(run), "--yes"]) == 0
    assert not list(run.rglob("set_aside"))
    assert main(["clean", str(run), "--yes"]) == 0
    assert "nothing is set aside" in capsys.readouterr().out.splitlines()[-1]


def test_not_while_a_command_works_on_the_run(run: Path) -> None:
    before = stamps(run)
    with RunDir(epath.Path(run)).locked():
        assert main(["clean", str(run), "--yes"]) == 2
    assert stamps(run) == before
