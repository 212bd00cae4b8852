"""What does running again do to a run that is there: a changed knob, a lost part, a second hand?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from etils import epath

from ste_jax.checkpoints.card import read_card
from ste_jax.cli import main
from ste_jax.finetuning.loop import FinetuneResult
from ste_jax.run.best import best_judge
from ste_jax.run.layout import RunDir
from ste_jax.system import files
from ste_jax.system.errors import Preempted
from tests.comparing import assert_same_arrays
from tests.test_cli import one_sentence, told


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, with a config of its own: (the run, its config file, words)."""
    run, config = finished
    shutil.copytree(run.root, tmp_path / "run")
    values = yaml.safe_load(config.read_text())
    shutil.copytree(values["model"], tmp_path / "model")
    return RunDir(epath.Path(tmp_path / "run")), config, ["--dir", str(tmp_path / "run")]


def asked_a_model(run: RunDir) -> int:
    return sum('"work"' in line for line in run.metrics.read_text().splitlines())


def test_other_shapes_are_refused_unless_asked_for(copy, capsys):
    run, config, where = copy
    before = asked_a_model(run)
    words = ["run", str(config), "decoding.groups=4", *where]
    status, error = told(capsys, *words)
    assert status == 2 and "decoding.groups=8, not 4" in error and one_sentence(error)
    assert main([*words, "--new-shapes"]) == 0
    assert json.loads(run.manifest.read_text())["shapes"]["groups"] == 4
    assert asked_a_model(run) == before


def test_fewer_iterations_leave_the_later_ones_out(copy, capsys):
    run, config, where = copy
    assert main(["run", str(config), "iterations=1", *where]) == 0
    assert [each.index for each in run.iterations()] == [0, 1]
    assert best_judge(run.root).checkpoint == run.iteration(1).checkpoint
    assert main(["run", str(config), *where]) == 0
    assert [each.index for each in run.iterations()] == [0, 1, 2]


def test_a_lost_checkpoint_is_made_again(copy, tmp_path, capsys):
    run, config, where = copy
    lost = Path(run.iteration(2).checkpoint)
    shutil.move(lost, tmp_path / "before")
    here = run.iteration(2)
    judgments = here.heldout.judgments.path(0).stat()
    rest = [path.read_text() for path in (here.loss_curve, here.evaluation)]
    capsys.readouterr()
    assert main(["run", str(config), *where]) == 0
    says = "is trained again, since its checkpoint is gone"
    plan, said = [line for line in capsys.readouterr().err.splitlines() if says in line]
    assert "set_aside" not in plan and "(evaluation.json, finetune.json) lies in " in said
    assert_same_arrays(tmp_path / "before", lost)
    assert read_card(lost) == read_card(tmp_path / "before")
    assert [path.read_text() for path in (here.loss_curve, here.evaluation)] == rest
    (aside,) = (here.root / "set_aside").glob("finetune-*")
    assert [(aside / name).read_text() for name in ("finetune.json", "evaluation.json")] == rest
    assert here.heldout.judgments.path(0).stat() == judgments  # it is asked nothing again


def test_the_seed_may_be_gone_once_it_was_read(copy, tmp_path, recwarn):
    run, config, where = copy
    path = tmp_path / "moved.yaml"
    values = yaml.safe_load(config.read_text())
    path.write_text(yaml.safe_dump({**values, "model": str(tmp_path / "model")}))
    assert main(["run", str(path), *where]) == 0
    shutil.rmtree(tmp_path / "model")
    before = asked_a_model(run)
    assert main(["run", str(path), *where]) == 0
    assert asked_a_model(run) == before
    assert any("going on with the seed" in str(each.message) for each in recwarn)


def test_the_instructions_may_be_gone_once_they_were_taken_in(copy, tmp_path, capsys, recwarn):
    run, config, where = copy
    values = yaml.safe_load(config.read_text())
    pool = shutil.copy(values["pool"]["path"][0], tmp_path / "pool.jsonl")
    words = ["run", str(config), f"pool.path=[{pool}]", *where]
    assert main([*words, "--yes"]) == 0
    kept = {path: path.read_bytes() for path in Path(run.pool.directory).iterdir()}
    Path(pool).unlink()
    assert main(words) == 0
    assert any("pool that was taken in" in str(each.message) for each in recwarn)
    status, error = told(capsys, "run", str(config), "pool.path=[typo.jsonl]", *where)
    assert status == 2 and "typo.jsonl" in error
    assert {path: path.read_bytes() for path in Path(run.pool.directory).iterdir()} == kept


def test_nothing_old_is_shown_of_a_judge_that_is_made_anew(copy, monkeypatch):
    run, config, where = copy

    def stop(*_: object, **__: object) -> None:
        raise Preempted("stopped")

    monkeypatch.setattr("ste_jax.pipeline.finetune.finetune", stop)
    assert main(["run", str(config), "finetune.learning_rate=0.002", "--yes", *where]) == 75
    assert run.iteration(0).evaluation.exists()
    assert not run.iteration(1).evaluation.exists()


def test_a_training_in_hand_that_is_let_go_of_is_named(copy, monkeypatch, capsys):
    run, config, where = copy
    here, states = run.iteration(1), run.iteration(1).train_state
    files.remove(here.checkpoint)
    files.remove(here.loss_curve)
    files.remove(states)
    (states / "training/7").mkdir(parents=True)
    says = "sft 1: the training that had taken 7 steps is begun again, since finetune.learning_rate"
    words = ["run", str(config), "finetune.learning_rate=0.002", *where]
    assert main([*words, "--dry-run"]) == 0
    assert says in capsys.readouterr().out and states.exists()
    assert main(["run", str(config), *where, "--dry-run"]) == 0  # it would go on
    assert "sft 1: the training goes on after 7 steps" in capsys.readouterr().out

    def stop(*_: object, **__: object) -> None:
        raise Preempted("stopped")

    monkeypatch.setattr("ste_jax.pipeline.finetune.finetune", stop)
    status, error = told(capsys, *words)
    assert status == 2 and "(sft 1, iteration 2), since finetune.learning_" in error
    assert states.exists()
    assert main([*words, "--yes"]) == 75
    assert says in capsys.readouterr().err and not states.exists()
    # It comes back with its knobs, and goes on.
    assert main(["run", str(config), *where]) == 75
    assert (states / "training/7").is_dir()


def test_where_no_step_was_as_good_as_the_start_the_judge_is_the_start(copy, monkeypatch, capsys):
    run, _, _ = copy
    values = yaml.safe_load(run.config.read_text())
    values["finetune"]["learning_rate"] = 0.002
    run.config.write_text(yaml.safe_dump(values))
    given = []

    def no_better(*, start, **_: object) -> FinetuneResult:
        given.append(start)
        worse = {"step": 4, "n_prompts": 1, "accuracy": 0.0, "parsed": 1.0}
        return FinetuneResult(
            steps=[{"step": 4, "loss": 1.0}],
            validations=[{"step": 0, **start}, worse],
            best_step=0,
            best_accuracy=start["accuracy"],
            dropped=[],
            truncated=[],
            unweighted=[],
        )

    monkeypatch.setattr("ste_jax.pipeline.finetune.finetune", no_better)
    before = asked_a_model(run)
    status, error = told(capsys, "finetune", str(run.root), "--iteration", "1")
    assert status == 2 and "--yes" in error and one_sentence(error) and not given
    assert main(["finetune", str(run.root), "--iteration", "1", "--yes"]) == 0
    assert asked_a_model(run) == before  # the seed was measured in the run that was copied
    seed, here = run.iteration(0), run.iteration(1)
    assert given == [json.loads(seed.validation.read_text())["measured"]]
    assert_same_arrays(Path(seed.checkpoint), Path(here.checkpoint))
    card = read_card(here.checkpoint)["provenance"]
    assert (card["iteration"], card["step"]) == (1, 0)
    assert json.loads(here.loss_curve.read_text())["best_step"] == 0


def test_a_changed_judge_prompt_reaches_the_seed_s_card(copy, tmp_path):
    run, config, where = copy
    values = yaml.safe_load(config.read_text())
    values["judge"]["force_text"] = "\n [["
    path = tmp_path / "forced.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["run", str(path), "iterations=1", "annotate.samples=1", "--yes", *where]) == 0
    card = read_card(run.iteration(0).checkpoint)
    assert card["provenance"]["judge"]["knobs"]["force_text"] == "\n [["


def test_two_commands_do_not_work_on_one_run(copy, capsys):
    run, config, where = copy
    with run.locked():
        status, error = told(capsys, "run", str(config), *where)
    assert status == 2 and "another `ste` command" in error and one_sentence(error)
    assert main(["run", str(config), *where]) == 0


def test_an_evaluation_never_lands_in_somebody_s_directory(copy, tmp_path, capsys):
    run, _, _ = copy
    data = tmp_path / "pairs.jsonl"
    row = {"instruction": " apple", "response_a": " house", "response_b": " igloo", "label": "A"}
    data.write_text(json.dumps(row))
    out = run.iteration(1).root / "evaluation"
    before = sorted(path.name for path in out.iterdir())
    words = ["evaluate", str(run.root), "--benchmark", "pairs", "--data", str(data)]
    status, error = told(capsys, *words, "--out", str(out))
    assert status == 2 and "holds something else" in error
    assert sorted(path.name for path in out.iterdir()) == before
    words[1] = str(tmp_path / "no-model")
    status, error = told(capsys, *words, "--out", str(tmp_path / "new"))
    assert status == 2 and "no-model" in error
    assert not (tmp_path / "new").exists()


def test_votes_without_chance_are_refused(copy, capsys):
    run, _, _ = copy
    words = ["judge", str(run.root), "--instruction", " apple", "--a", " house", "--b", " igloo"]
    status, error = told(capsys, *words, "--votes", "3", "--temperature", "0")
    assert status == 2 and "one and the same text" in error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("a thing\nof two lines"), "RuntimeError: a thing of two lines"),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 GB"), "lower decoding.groups"),
        (OSError(28, "No space left on device", "/x"), "/x No space left"),
    ],
)
def test_what_nobody_foresaw_is_still_one_sentence(copy, capsys, monkeypatch, error, says):
    _, config, where = copy

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ste_jax.pipeline.recipe.run", fail)
    status, said = told(capsys, "run", str(config), *where)
    assert status == 1 and says in said and one_sentence(said)
