"""Is finished work set aside only where that is agreed to, and does a run keep its own knobs?"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from etils import epath

import ste_jax
from ste_jax import records
from ste_jax.cli import main
from ste_jax.commands.status import status
from ste_jax.config.load import load_config
from ste_jax.pipeline import finetune
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.plan import agree
from ste_jax.run import marks
from ste_jax.run.changes import Planned
from ste_jax.run.layout import RunDir, run_named
from ste_jax.run.plan import Plan
from ste_jax.system import preemption
from ste_jax.system.errors import Preempted, RequestError
from tests.golden import archive
from tests.golden.variants import running
from tests.pipeline.test_dry_run import stamps
from tests.running import REPOSITORY, environment
from tests.test_cli import one_sentence


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a finished run, from which its paths begin; no model can be loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(Context, "generator")
    return archive.unpack("plain", tmp_path) / "run"


def answered(monkeypatch: pytest.MonkeyPatch, answer: bool | None) -> list[str]:
    asked: list[str] = []

    def confirmed(question: str) -> bool | None:
        asked.append(question)
        return answer

    monkeypatch.setattr("ste_jax.pipeline.plan.confirmed", confirmed)
    return asked


@pytest.mark.parametrize("answer", [None, False])
def test_without_a_yes_nothing_is_touched(
    unpacked: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: bool | None,
) -> None:
    asked, before = answered(monkeypatch, answer), stamps(unpacked)
    assert main([*running("plain"), "finetune.learning_rate=0.1"]) == 2
    (question,) = asked
    said = "finished work is set aside (sft 1-2, evaluate 1-2, annotate 2), since finetune.learning"
    assert question.startswith(said)
    error = capsys.readouterr().err
    assert one_sentence(error) and "nothing was changed" in error
    assert "ste run plain/run" in error.splitlines()[-1]
    assert ("--yes" in error.splitlines()[-1]) == (answer is None)
    assert stamps(unpacked) == before


def test_overrides_that_were_forgotten_are_named_and_the_run_keeps_its_own(
    unpacked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = unpacked.parent / "config.yaml"  # of which the run has another number of samples
    config.write_text(config.read_text().replace("samples: 4", "samples: 3"))
    before = stamps(unpacked)
    assert main(running("plain")) == 2
    error = capsys.readouterr().err
    assert "  annotate.samples was 4 and is 3\n" in error
    assert "(to go on under the run's own: ste run plain/run)" in error
    assert stamps(unpacked) == before
    tables = [stamps(unpacked / place) for place in ("instructions", "pairs")]
    assert main(["run", "plain/run"]) == 0
    assert "nothing is left to do" in capsys.readouterr().err
    assert [stamps(unpacked / place) for place in ("instructions", "pairs")] == tables
    assert main(["run", "plain/run", "annotate.samples=3", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "annotate.samples was 4 and is 3" in shown and "pair: " not in shown


def test_more_work_does_not_ask(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answered(monkeypatch, None)
    assert main([*running("plain"), "iterations=3"]) != 2  # where it stops, since it has no model
    assert not asked
    assert "annotate 3: " in capsys.readouterr().err


def test_a_stage_asks_too(unpacked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = unpacked / "config.yaml"
    config.write_text(config.read_text().replace("samples: 4", "samples: 3"))
    before = stamps(unpacked)
    assert main(["annotate", "plain/run", "--iteration", "1"]) == 2
    error = capsys.readouterr().err
    assert "annotate 1: 26 prompts are judged again" in error
    assert "--yes" in error.splitlines()[-1] and stamps(unpacked) == before


@pytest.mark.parametrize("stage", ["annotate", "finetune"])
def test_a_stage_of_an_iteration_that_the_run_has_not_is_refused(
    stage: str, unpacked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(unpacked)
    assert main([stage, "plain/run", "--iteration", "3"]) == 2
    error = capsys.readouterr().err
    assert one_sentence(error) and "`ste run plain/run iterations=3`" in error
    assert stamps(unpacked) == before


def test_a_yes_behind_a_request_to_stop_is_none(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stamps(unpacked)
    answered(monkeypatch, True)
    monkeypatch.setattr(preemption, "requested", lambda: True)
    step = Planned(title="sft 1", fate="again", what="again", why="a knob", asks=True)
    with pytest.raises(Preempted):
        agree(Plan(str(unpacked), [step]), load_config("pico"), yes=False, ask=True)
    assert stamps(unpacked) == before


def test_what_was_agreed_to_and_stopped_goes_on_unasked_under_the_same_config(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answered(monkeypatch, None)
    words = [*running("plain"), "finetune.learning_rate=0.1"]

    def stop(*_: object, **__: object) -> None:
        raise Preempted("stopped")

    monkeypatch.setattr("ste_jax.pipeline.finetune._finetune", stopped_at_work(stop))
    assert main([*words, "--yes"]) == 75
    said = "as was agreed to when this was begun"
    assert said not in capsys.readouterr().err
    for again in (words, ["run", "plain/run"]):
        assert main(again) == 75 and not asked
        assert said in capsys.readouterr().err
    # What was not agreed to is asked about, without advice to go on under the same config.
    marks.forget(epath.Path(unpacked / "instructions/label.mark.json"))
    assert main(words) == 2 and len(asked) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("Say --yes (in Python yes=True) to go on so")
    assert main([*words, "seed=9"]) == 2 and len(asked) == 2
    assert main([*words, "--yes"]) != 2


def test_a_kill_of_what_was_agreed_to_is_gone_on_from_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.unpack("plain", tmp_path)
    monkeypatch.chdir(tmp_path)
    path = f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"

    def killed(*words: str) -> str:
        command = [sys.executable, "-m", "tests.killing", "round:4", "--", "run", *words]
        env = {**environment(), "PYTHONPATH": path}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == -signal.SIGKILL, done.stderr
        return done.stderr

    assert "seed was 0 and is 7" in killed("plain/run", "seed=7", "--yes")
    found = status("plain/run")
    assert found["next"] == "label" and found["steps"][-1]["made_before"]
    assert [step["step"] for step in found["steps"] if step["done"]] == ["intake", "seed model"]
    assert "as was agreed to when this was begun" in killed("plain/run")


def stopped_at_work(stop: Callable[..., None]) -> Callable[..., None]:
    """In place of the training of a phase: a dry pass is as ever."""
    real = finetune._finetune

    def finetuned(context: Context, *rest: Any) -> None:
        (real if context.changes.dry else stop)(context, *rest)

    return finetuned


def test_an_agreement_ends_with_the_work_and_with_another_config(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(epath.Path(unpacked))
    answered(monkeypatch, None)
    config = load_config(str(run.config))
    again = [Planned(title="sft 1", fate="again", what="..", why="..", asks=True)]
    plan = Plan(str(run.root), again)
    with pytest.raises(RequestError):
        agree(plan, config, yes=False, ask=True)
    assert not run.agreed.exists()
    agree(plan, config, yes=True, ask=True)
    agree(plan, config, yes=False, ask=True)
    more = [*again, Planned(title="pair", fate="again", what="..", why="..", asks=True)]
    with pytest.raises(RequestError):
        agree(Plan(str(run.root), more), config, yes=False, ask=True)
    assert main(running("plain")) == 0  # all is done
    assert not run.agreed.exists()
    with pytest.raises(RequestError):
        agree(plan, config, yes=False, ask=True)
    agree(plan, config, yes=True, ask=True)
    other = dataclasses.replace(config, seed=9)
    with pytest.raises(RequestError):
        agree(plan, other, yes=False, ask=True)
    assert run.agreed.exists()  # since nothing was begun
    agree(Plan(str(run.root), []), other, yes=False, ask=True)
    with pytest.raises(RequestError):
        agree(plan, config, yes=False, ask=True)


def test_from_python_it_takes_a_yes(unpacked: Path) -> None:
    before = stamps(unpacked)
    with pytest.raises(RequestError, match=r"annotate.samples was 4 and is 3.*yes=True"):
        ste_jax.run_config("plain/run", overrides={"annotate.samples": 3})
    assert stamps(unpacked) == before


def test_a_shipped_name_is_no_directory_and_a_directory_that_is_no_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pico").mkdir()
    assert run_named("pico") is None and load_config("pico").name == "pico"
    with pytest.raises(RequestError, match="has no config"):
        run_named("./pico")
    Path("mine.yaml").write_text("model: pico\n")
    assert run_named("mine.yaml") is None
    Path("pico/config.yaml").write_text("model: pico\n")
    found = run_named(os.fspath(tmp_path / "pico"))
    assert found is not None and found.root == epath.Path(tmp_path / "pico")


def test_no_table_of_a_finished_run_is_read_twice_for_the_plan(
    unpacked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = records.from_parquet

    def counted(data: bytes, row_type: type, name: str) -> list:
        read.append(name)
        return real(data, row_type, name)

    monkeypatch.setattr(records, "from_parquet", counted)
    runs: Callable[[], int] = lambda: main(running("plain"))  # noqa: E731
    assert runs() == 0
    tables = [name for name in read if "/evaluation/" not in name]
    assert len(tables) > 10 and len(tables) == len(set(tables))
