"""Is what earlier versions have finished still taken up, and nothing of it made again?

The archives beside this file are such work (`make.py`). What the fingerprints in it stand for is
format: names inside hashes, the names of classes in Parquet files, keys in cards, names of files.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from etils import epath

import ste_jax
from ste_jax.cli import main
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.phases.dpo import DpoDir
from ste_jax.run.layout import RunDir
from ste_jax.run.tables import Table
from tests.golden import archive, make
from tests.golden.variants import VARIANTS, evaluating, running

WRITTEN_ANEW = ("config.yaml", "manifest.json", "manifest.json.copy", "metrics.jsonl")
"""What every command on a run writes, whatever is done."""

every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Unpacks a variant and goes where its paths begin; gives its directory."""
    monkeypatch.chdir(tmp_path)
    return lambda variant: archive.unpack(variant, tmp_path)


def go_on(variant: str, *overrides: str) -> tuple[int, list[str]]:
    """`ste run`, as it was run when the archive was made: its status, and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = main([*running(variant), "--yes", *overrides])
    ours = str(Path(ste_jax.__file__).parent)
    return status, [str(each.message) for each in caught if each.filename.startswith(ours)]


def finished_work(run: Path) -> dict[str, bytes]:
    """All files of a run but those that are written anew: path -> bytes."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.relative_to(run).parts[0] not in (*WRITTEN_ANEW, "report")
    }


def work_done(run: Path) -> list[str]:
    """The kinds of events in which something was asked or trained, in order."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [each["event"] for each in events if each["event"] in ("work", "train_step")]


@every_variant
def test_a_finished_run_is_taken_up_and_nothing_is_made_again(
    variant: str, unpacked: Callable[[str], Path]
) -> None:
    run = unpacked(variant) / "run"
    before, done = finished_work(run), (run / "metrics.jsonl").read_bytes()
    assert go_on(variant) == (0, [])
    after = finished_work(run)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] != after[name]] == []
    assert (run / "metrics.jsonl").read_bytes() == done, "something was done"


@every_variant
def test_a_finished_evaluation_is_taken_up_and_nothing_is_asked_again(
    variant: str, unpacked: Callable[[str], Path]
) -> None:
    place = unpacked(variant) / "evaluated"
    before = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    written = {path: path.stat().st_mtime_ns for path in place.glob("judgments/*.parquet")}
    assert written
    assert main(evaluating(variant)) == 0
    after = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    figures = place / "evaluation.json"
    now = json.loads(after[figures])
    assert now.pop("iteration") >= 0  # said since
    assert now == json.loads(before[figures])
    assert {path: after.get(path) for path in before if path != figures} == {
        path: data for path, data in before.items() if path != figures
    }
    assert {path.parent.name for path in after.keys() - before.keys()} == {"pairs"}  # kept since
    assert written == {path: path.stat().st_mtime_ns for path in written}


@every_variant
def test_what_needs_no_model_comes_out_the_same_when_it_is_lost(
    variant: str, unpacked: Callable[[str], Path]
) -> None:
    """Ids, and the hashes that choose and order rows: what is made of them is made again."""
    run = unpacked(variant) / "run"
    there = RunDir(epath.Path(run))
    tables: list[Table[Any]] = [there.pool, there.selection, there.selected]
    tables += [there.labelled(path.stem) for path in run.glob("labelled/*.json")]
    outputs = []
    for here in there.iterations()[1:]:
        tables += [here.prompts, here.training, DpoDir(here).preferences, here.heldout.prompts]
        tables += [here.labelled(path.stem).prompts for path in run.glob("labelled/*.json")]
        outputs += [here.curation, DpoDir(here).preference_counts, here.evaluation]
    tables = [table for table in tables if table.directory.exists()]
    lost = [list(table.rows()) for table in tables]
    said = [Path(path).read_bytes() for path in outputs if path.exists()]
    done = work_done(run)
    assert all(lost), "a table without a row shows nothing"
    for table in tables:
        table.remove()
    for path in outputs:
        path.unlink(missing_ok=True)
    assert go_on(variant) == (0, [])
    for table, rows in zip(tables, lost, strict=True):
        assert list(table.rows()) == rows, table.directory
    assert [Path(path).read_bytes() for path in outputs if path.exists()] == said
    assert work_done(run) == done


@every_variant
def test_a_training_that_was_ended_is_found_again_by_its_name(
    variant: str, unpacked: Callable[[str], Path]
) -> None:
    """A kill between the end of a training and its loss curve: the steps are not taken again."""
    run = unpacked(variant) / "run"
    curves = sorted(run.glob("iterations/**/finetune.json"))
    said, done = [path.read_bytes() for path in curves], work_done(run)
    for path in curves:
        path.unlink()
    assert go_on(variant) == (0, [])
    assert [path.read_bytes() for path in curves] == said
    assert work_done(run) == done


@every_variant
def test_what_finished_work_was_made_under_is_listed(
    variant: str, unpacked: Callable[[str], Path]
) -> None:
    listed = json.loads(archive.FINGERPRINTS.read_text())
    assert listed.keys() == VARIANTS.keys()
    assert archive.fingerprints(unpacked(variant)) == listed[variant]


def test_another_knob_is_noticed(
    unpacked: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the tests above can fail."""
    run = unpacked("plain") / "run"
    monkeypatch.setattr(Context, "generator", lambda *_: None)  # asked next, and no answer comes
    status, warned = go_on("plain", "annotate.samples=3")
    assert status != 0 and not warned
    said = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert said[-1]["event"] == "made_again" and said[-1]["step"] == "annotate 1"
    assert "annotate.samples was 4 and is 3. What was there lies in" in said[-1]["line"]
    assert list(run.glob("iterations/1/set_aside/annotate-*/judgments"))


def test_tables_are_written_as_they_are_listed() -> None:
    """The name of a class of rows and its columns lie in files: whoever renames it keeps them."""
    assert make.formats() == json.loads(archive.FORMATS.read_text())


@every_variant
def test_tables_of_finished_work_are_as_listed(
    variant: str, unpacked: Callable[[str], Path]
) -> None:
    listed = json.loads(archive.FORMATS.read_text())
    tables = archive.tables(unpacked(variant))
    assert len(tables) > 10
    for path in tables:
        form = make.form_of(pq.read_schema(path))
        assert form == listed[form["metadata"]["table"]], path


def test_every_class_of_rows_is_in_some_archive(unpacked: Callable[[str], Path]) -> None:
    seen = {
        pq.read_schema(path).metadata[b"table"].decode()
        for variant in VARIANTS
        for path in archive.tables(unpacked(variant))
        if pq.read_metadata(path).num_rows
    }
    assert seen == set(make.formats())
