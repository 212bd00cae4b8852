"""Finished work is safe: nothing is removed for a request that is refused, what is damaged is
found, and who does what an error says finds the work there."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
from etils import epath

from ste_jax import records
from ste_jax.checkpoints.card import read_card
from ste_jax.cli import main
from ste_jax.commands.model_card import model_card
from ste_jax.model_io.sources import resolve
from ste_jax.run.best import locate
from ste_jax.run.layout import RunDir
from ste_jax.run.metrics_log import read_metrics
from ste_jax.system.errors import Preempted, WorkError
from tests import reports
from tests.comparing import assert_same_arrays, tree
from tests.test_cli import one_sentence, told


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run: (the run, the words that run it again)."""
    run, config = finished
    shutil.copytree(run.root, tmp_path / "run")
    return RunDir(epath.Path(tmp_path / "run")), ["run", str(config), "--dir", f"{tmp_path}/run"]


def tables(run: RunDir) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(Path(run.root).rglob("*.parquet"))}


def work(run: RunDir) -> int:
    """How often a model was asked or trained."""
    return sum(each["event"] in ("work", "train_step") for each in read_metrics(run.root))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def test_a_request_that_is_refused_touches_nothing(copy, capsys):
    run, words = copy
    before = tree(run.root)
    for override in (
        "finetune.epochs=.nan",
        "finetune.learning_rate=.inf",
        "seed=-1",
        "model=absent-model",
        "pool.path=[absent.jsonl]",
        "roles.judge.template=absent.yaml",
        "evaluate.sets=[{name: mine, data: absent.jsonl}]",
        "decoding.mesh.tensor=5",
        "decoding.groups=4",
    ):
        status, error = told(capsys, *words, override)
        assert status == 2 and one_sentence(error), (override, error)
        assert tree(run.root) == before, override


def test_of_a_pool_without_an_instruction_no_run_is_begun(finished, tmp_path, capsys):
    _, config = finished
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"instruction": ""}\n[1]\n')
    words = ["run", str(config), f"pool.path=[{pool}]", "--dir", str(tmp_path / "run")]
    status, error = told(capsys, *words)
    assert status == 1 and "no instruction" in error
    assert not (tmp_path / "run").exists()


def test_an_endpoint_without_its_key_is_told_before_a_run_is_begun(
    finished, tmp_path, capsys, monkeypatch
):
    _, config = finished
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    words = [
        "endpoints={big: {url: 'http://localhost:1/v1', model: m, key_variable: NO_SUCH_KEY}}",
        "pair.generator=big",
    ]
    status, error = told(capsys, "run", str(config), *words, "--dir", str(tmp_path / "run"))
    assert status == 2 and "NO_SUCH_KEY" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*(is made anew| again, since )")
def test_a_training_that_cannot_be_leaves_the_judges_there(copy, capsys):
    run, words = copy
    before, asked = tables(run), work(run)
    cards = {i: (run.iteration(i).checkpoint / "ste_checkpoint.json").read_text() for i in (1, 2)}
    status, error = told(capsys, *words, "finetune.sequence_length=8")  # seen at once
    assert status == 2 and "finetune.sequence_length=8" in error
    too_short = int(re.findall(r"less than the (\d+) tokens", error)[0]) + 1
    status, error = told(capsys, *words, f"finetune.sequence_length={too_short}", "--yes")
    assert status == 1 and f"finetune.sequence_length={too_short}" in error
    assert main(words) == 0
    assert work(run) == asked and tables(run) == before
    for index, card in cards.items():
        assert (run.iteration(index).checkpoint / "ste_checkpoint.json").read_text() == card


@pytest.mark.filterwarnings("ignore:.*(is made anew| again, since )")
def test_an_endpoint_that_cannot_be_asked_leaves_the_rows_there(copy, capsys, monkeypatch):
    run, words = copy
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    before = tables(run)
    other = [
        "endpoints={big: {url: 'http://localhost:1/v1', model: m, key_variable: NO_SUCH_KEY}}",
        "annotate.generator={1: big}",
    ]
    status, error = told(capsys, *words, *other, "--yes")
    last = error.splitlines()[-1]
    assert status == 2 and "NO_SUCH_KEY" in last and "is not set" in last
    assert tables(run) == before


def test_five_hundred_flipped_bits_in_the_tables_of_a_run_are_found(finished):
    run, _ = finished
    kinds = {
        path: next(
            kind
            for kind in vars(records).values()
            if isinstance(kind, type)
            and kind.__name__
            == records.open_parquet(data, "x").schema_arrow.metadata[b"table"].decode()
        )
        for path, data in tables(run).items()
    }
    whole, draw = tables(run), random.Random(0)
    assert len(kinds) > 30
    for _ in range(500):
        path = draw.choice(list(whole))
        data = bytearray(whole[path])
        bit = draw.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WorkError, match=re.escape(str(path))):
            records.from_parquet(bytes(data), kinds[path], str(path))


def test_who_moves_a_damaged_table_away_as_told_gets_the_same_rows_again(copy, tmp_path, capsys):
    run, words = copy
    before = tables(run)
    damaged = {
        Path(table.path(1))
        for table in (
            run.labels,
            run.selection,
            run.pairs,
            run.iteration(1).training,
            run.iteration(2).judgments,
            run.iteration(2).heldout.judgments,
        )
    }
    for path in damaged:
        flip(path, 8 * (path.stat().st_size // 2))
    moved = set()
    while True:
        status, error = told(capsys, *words)
        if status == 0:
            break
        (path,) = [path for path in damaged if str(path) in error]
        assert status == 1 and one_sentence(error) and "move this one file away" in error
        path.rename(tmp_path / f"damaged-{len(moved)}")
        moved.add(path)
    assert moved == damaged
    assert tables(run) == before
    trained = [e for e in read_metrics(run.root) if e["event"] == "train_step"]
    assert len(trained) == len({(e["iteration"], e["step"]) for e in trained})  # none again


@pytest.mark.parametrize("damage", [b"", b"{", b'{"fingerprint": 1', b"\x00" * 40])
def test_damaged_marks_and_a_damaged_manifest_cost_nothing(copy, damage):
    run, words = copy
    before, asked = tables(run), work(run)
    kept = Path(run.root)
    marks = [
        path.with_suffix("")
        for path in kept.rglob("*.json.copy")
        # what nobody reads where all is done
        if "train_state" not in path.parts and path.name != "validation.json.copy"
    ]
    assert len(marks) > 15 and Path(run.manifest) in marks
    for path in marks:
        path.write_bytes(damage)
    assert main(words) == 0
    assert work(run) == asked and tables(run) == before
    for path in marks:
        json.loads(path.read_text())


def test_a_manifest_that_is_lost_twice_is_rebuilt(copy, recwarn):
    run, words = copy
    before, asked, old = tables(run), work(run), run.read_manifest()
    for name in ("manifest.json", "manifest.json.copy"):
        (run.root / name).write_text("{")
    again = RunDir(run.root)
    found = again.read_manifest()
    assert {key: found[key] for key in ("shards", "iterations", "shapes", "intake")} == {
        key: old[key] for key in ("shards", "iterations", "shapes", "intake")
    }
    assert any("rebuilt" in str(each.message) for each in recwarn)
    assert main(words) == 0
    assert work(run) == asked and tables(run) == before


def test_a_checkpoint_whose_card_is_damaged_is_told_and_not_removed(copy, tmp_path, capsys):
    run, words = copy
    card = Path(run.iteration(1).checkpoint) / "ste_checkpoint.json"
    whole, asked = card.read_text(), work(run)
    card.write_text(whole[:-20])
    before = tree(run.iteration(1).root)
    status, error = told(capsys, *words)
    assert status == 1 and str(card.parent) in error and one_sentence(error)
    assert tree(run.iteration(1).root) == before
    card.write_text(whole)  # the first thing that it says
    assert main(words) == 0
    assert work(run) == asked


def test_a_judge_that_is_moved_away_with_its_curve_is_trained_again(copy, tmp_path):
    """The training state that is left says that its best was saved; it is not believed."""
    run, words = copy
    here = run.iteration(2)
    shutil.copytree(here.checkpoint, tmp_path / "first")
    for path in (here.checkpoint, here.loss_curve, here.root / "finetune.json.copy"):
        if path.exists():
            Path(path).rename(tmp_path / path.name)
    assert main(words) == 0
    assert_same_arrays(Path(here.checkpoint), tmp_path / "first")


def current(run: RunDir) -> dict[Path, bytes]:
    """The tables but for what is set aside."""
    return {path: data for path, data in tables(run).items() if "set_aside" not in path.parts}


@pytest.mark.filterwarnings("ignore:.*(is made anew| again, since )")
@pytest.mark.parametrize(
    ("fewer", "status"),
    [
        (["pool.limit=30"], 1),
        (["select.train=2", "select.validation_fraction=0"], 1),
        (["annotate.orders=one"], 75),
    ],
)
def test_rows_that_a_knob_takes_away_come_back_with_it(copy, capsys, monkeypatch, fewer, status):
    run, words = copy
    before = current(run)
    with monkeypatch.context() as patch:
        patch.setattr("ste_jax.pipeline.finetune.finetune", stop)
        assert told(capsys, *words, *fewer, "--yes")[0] == status
    assert len(list(run.iteration(1).judgments.rows())) < 60
    asked = work(run)
    status, error = told(capsys, *words)  # what comes of it is not known before
    assert status == 2 and "finished work may be set aside (" in error.splitlines()[-1]
    assert main([*words, "--yes"]) == 0
    assert work(run) == asked and current(run) == before


def stop(*_: object, **__: object) -> None:
    raise Preempted("stopped")


@pytest.mark.filterwarnings("ignore:.*(is made anew| again, since )")
@pytest.mark.parametrize("lost", ["nothing", "finetune.json", "mark"])
def test_a_judge_that_is_not_whole_is_set_aside_for_other_knobs(copy, monkeypatch, lost):
    run, words = copy
    here, before, asked = run.iteration(1), current(run), work(run)
    card, curve = read_card(here.checkpoint), here.loss_curve.read_text()
    for path in Path(here.root).glob("finetune.mark.json*" if lost == "mark" else lost):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("ste_jax.pipeline.finetune.finetune", stop)
        assert main([*words, "finetune.epochs=1", "--yes"]) == 75
    assert not here.checkpoint.exists()
    assert main(words) == 0
    assert work(run) == asked and current(run) == before
    assert read_card(here.checkpoint) == card and here.loss_curve.read_text() == curve


def test_a_damaged_checkpoint_is_told_and_not_removed_for_other_knobs_either(copy, capsys):
    run, words = copy
    card = Path(run.iteration(1).checkpoint) / "ste_checkpoint.json"
    card.write_text(card.read_text()[:200])
    before = tree(run.iteration(1).root)
    status, error = told(capsys, *words, "finetune.epochs=1", "--yes")
    assert status == 1 and str(card.parent) in error and one_sentence(error)
    assert tree(run.iteration(1).root) == before


def test_the_mark_of_a_judge_that_is_lost_twice_is_made_again(copy):
    run, words = copy
    before, asked = tables(run), work(run)
    marks = sorted(Path(run.root).rglob("finetune.mark.json*"))
    whole = [path.read_bytes() for path in marks]
    assert len(marks) == 4
    for path in marks:
        path.unlink()
    assert main(words) == 0
    assert work(run) == asked and tables(run) == before
    assert [path.read_bytes() for path in marks] == whole


def test_a_run_whose_manifest_is_gone_is_still_one(copy):
    run, _ = copy
    at = resolve(str(run.iteration(2).checkpoint))
    whole = model_card("judge", at, read_card(at.path)["provenance"], reports.REPORTS)
    assert "## Measured" in whole
    for name in ("manifest.json", "manifest.json.copy"):
        (run.root / name).unlink()
        assert model_card("judge", at, read_card(at.path)["provenance"], reports.REPORTS) == whole
        run.manifest.unlink()
        assert locate(str(run.root)).kind == "checkpoint"
        assert run.manifest.exists()
        run.manifest.unlink()


def test_a_command_that_is_refused_for_another_at_work_mends_nothing(copy, capsys):
    run, words = copy
    run.manifest.write_text("{")
    with run.locked():
        before = tree(run.root)
        status, error = told(capsys, *words)
        assert status == 2 and "another `ste` command is at work" in error
        assert tree(run.root) == before
    assert main(words) == 0
    json.loads(run.manifest.read_text())


def test_a_damaged_loss_curve_is_made_again_without_training(copy, tmp_path, capsys):
    run, words = copy
    curve = Path(run.iteration(1).loss_curve)
    whole, asked = curve.read_bytes(), work(run)
    curve.write_bytes(whole[:100])
    status, error = told(capsys, *words)
    assert status == 1 and str(curve) in error and "move this one file away" in error
    curve.rename(tmp_path / "curve")
    assert main(words) == 0
    assert work(run) == asked and curve.read_bytes() == whole


# ---------------------------------------------------------------------------------------------
# --out
