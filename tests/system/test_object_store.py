"""A run in a bucket (`gs://`) is the run on a disk: made, killed, resumed and read there.

The bucket is an emulator's, in memory, on this machine. Paths reach it by fsspec, Orbax by
TensorStore.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from etils import epath
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

from ste_jax.checkpoints.card import read_card
from ste_jax.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from ste_jax.commands.clean import clean
from ste_jax.commands.status import status
from ste_jax.config.schema import PoolKnobs
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.processes import Processes
from ste_jax.pipeline import intake
from ste_jax.pipeline.context import Context
from ste_jax.records import Label
from ste_jax.run import marks
from ste_jax.run.layout import RunDir
from ste_jax.run.metrics_log import read_metrics
from ste_jax.run.tables import Table
from ste_jax.system import files
from ste_jax.system.errors import WorkError
from tests import running
from tests.comparing import assert_identical
from tests.finetuning.small import ONE, small_model

SMALL: dict[str, Any] = {
    "iterations": 1,
    "pool__limit": 300,
    "pool__shards": 2,
    "select__train": 60,
    "select__heldout": 30,
    "pair__min_answer_chars": 2,
    "finetune__batch_rows": 2,
    "finetune__epochs": 8.0,
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty bucket; the environment of what is started meanwhile leads there."""
    plain = objects.download

    def download(request: Any, response: Any, storage: Any, *more: Any, **words: Any) -> None:
        """TensorStore writes only over the generation that it has read: the real store tells it."""
        names = (request.params["bucket_name"], request.params["object_id"])
        with contextlib.suppress(NotFound):
            response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]
        plain(request, response, storage, *more, **words)

    routes = tuple(
        (path, {verb: download if do is plain else do for verb, do in verbs.items()})
        for path, verbs in emulator.HANDLERS
    )
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    server = emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    server.start()
    place = f"http://localhost:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "download", download)  # what `objects.get` calls
        patch.setattr(emulator, "HANDLERS", routes)
        patch.setenv("STORAGE_EMULATOR_HOST", place)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", place)
        patch.setenv("GCE_METADATA_ROOT", "localhost:1")  # nobody is there to ask who we are
        patch.setenv("NO_GCE_CHECK", "true")
        yield "gs://bucket"
    server.stop()


def copied(source: epath.Path, target: Path) -> Path:
    """What lies in the bucket, on the disk."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            copied(path, target / path.name)
        else:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket: str, tmp_path: Path) -> None:
    config = running.write_config(tmp_path, **SMALL)
    assert running.run(["run", str(config), "--dir", str(tmp_path / "disk")]) == 0
    words = ["run", str(config), "--dir", f"{bucket}/run"]
    assert running.run(words, place="step:7") == -signal.SIGKILL
    assert running.run(words) == 0
    there = copied(epath.Path(f"{bucket}/run"), tmp_path / "there")
    assert_identical(tmp_path / "disk", there)
    events = read_metrics(epath.Path(there))
    steps = [event["step"] for event in events if event["event"] == "train_step"]
    assert steps.count(1) == 1 and max(steps) > 7  # it went on from a state in the bucket
    assert (there / "report" / "index.html").exists()
    stands = status(f"{bucket}/run")
    assert all(step["done"] for step in stands["steps"]) and stands["at_work"] is None
    assert running.run(["run", f"{bucket}/run"]) == 0  # under its own config
    assert len(read_metrics(epath.Path(f"{bucket}/run"))) == len(events)


def test_a_save_that_fails_leaves_the_checkpoint_before_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{bucket}/checkpoint"
    models = [small_model(seed=seed) for seed in (0, 1, 2)]

    class Tokenizer:
        def save(self, directory: epath.Path) -> None:
            (directory / "tokenizer.json").write_text("{}")

    def save(number: int) -> None:
        save_checkpoint(place, models[number], tokenizer=Tokenizer(), provenance={"is": number})

    def is_of(number: int) -> None:
        assert read_card(place)["provenance"] == {"is": number}
        found, wanted = load_checkpoint(place, ONE), parameters_of(models[number])
        for path, value in parameters_of(found).items():
            assert np.array_equal(value, wanted[path]), path

    save(0)
    is_of(0)
    with monkeypatch.context() as failing:
        failing.setattr(files, "write_json", lambda path, value: (_ for _ in ()).throw(OSError(28)))
        with pytest.raises(WorkError, match="could not write the checkpoint"):
            save(1)
    is_of(0)
    for number in (1, 2):
        save(number)
        is_of(number)


class Log:
    """Takes events and forgets them."""

    def __call__(self, event: str, **values: Any) -> None:
        pass


def with_pool_of_100(place: str, tmp_path: Path) -> Context:
    """A run that is to take in 100 instructions."""
    source = tmp_path / "pool.jsonl"
    source.write_text("".join(f'{{"instruction": "number {n}"}}\n' for n in range(100)))
    run = RunDir(epath.Path(place))
    files.write_twice(run.manifest, {"shards": 3, "iterations": 1})
    knobs = SimpleNamespace(pool=PoolKnobs(path=(str(source),), shards=3))
    return Context(config=cast(Any, knobs), run=run, processes=Processes(), log=Log())


def test_a_pool_of_many_rows_comes_whole_into_a_bucket(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append to an object replaces it: of 20,000 rows the last 3,616 were left."""
    monkeypatch.setattr(intake, "_ROWS_IN_MEMORY", 16)
    context = with_pool_of_100(f"{bucket}/many", tmp_path)
    run = context.run
    intake._take_in(context)
    texts = {row.messages[0]["content"] for row in run.pool.rows()}
    assert texts == {f"number {n}" for n in range(100)}
    assert run.read_manifest()["intake"]["kept"] == 100
    assert not any("spill" in path.name for path in (run.root / "instructions").iterdir())


def test_a_table_that_lacks_rows_is_told(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = with_pool_of_100(f"{bucket}/lacking", tmp_path)
    run = context.run
    plain = intake._write_pool
    monkeypatch.setattr(intake, "_write_pool", lambda *given: plain(*given) - 1)
    with pytest.raises(WorkError, match="holds 99 rows, and 100 were to be written"):
        intake._take_in(context)
    assert not intake.is_taken_in(run, context.config.pool)  # so that it is taken in again


def test_what_is_moved_aside_in_a_bucket_comes_back(bucket: str) -> None:
    root = epath.Path(f"{bucket}/aside")
    table, mark = Table(root / "table", Label, 2), root / "label.mark.json"
    rows = [Label(id=f"{n}", category="c", difficulty=None, failure=None, text="") for n in (1, 2)]
    marks.mark(mark, "one")
    for shard in range(2):
        table.write(shard, rows[shard : shard + 1])
    marks.change_over(mark, [table.directory], "two")
    assert list(table.rows()) == [] and marks.marked(mark) == "two"
    table.write(0, [])
    marks.change_over(mark, [table.directory], "one")
    assert list(table.rows()) == rows and marks.marked(mark) == "one"


def test_what_is_set_aside_in_a_bucket_is_removed(bucket: str) -> None:
    root = epath.Path(f"{bucket}/cleaned")
    files.write_json(root / "manifest.json", {"shards": 1, "iterations": 1})
    for name in ("one", "two"):
        place = root / "pairs" / "set_aside" / f"pair-{name}" / "kept"
        files.write_whole(place / "00000-of-00001.parquet", b"abc")
    assert clean(str(root), yes=True) == "removed 2 results of other knobs, 6 B"
    assert clean(str(root), yes=True) == f"nothing is set aside in {root}"
