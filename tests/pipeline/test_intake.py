"""What becomes of a pool that is sampled, filtered to nothing, or changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

from ste_jax.config.identity import fingerprint
from ste_jax.config.schema import LabelledSetKnobs, PoolKnobs
from ste_jax.parallel.processes import Processes
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.intake import is_read, pool_mark, take_in, take_in_labelled
from ste_jax.reporting.funnel import check_sums, funnel
from ste_jax.run import marks
from ste_jax.run.layout import RunDir
from ste_jax.run.tables import Table
from ste_jax.system import files
from ste_jax.system.errors import RequestError, WorkError
from tests.reports import REPORTS


@pytest.fixture
def run(tmp_path):
    run = RunDir(epath.Path(tmp_path / "run"))
    files.write_json(run.manifest, {"shards": 2})
    return run


def take(run, path, **knobs):
    """Take the file in; the texts of the pool, and what was counted."""
    config = SimpleNamespace(pool=PoolKnobs(path=(str(path),), **knobs))
    log = lambda *_, **__: None  # noqa: E731
    take_in(Context(config=config, run=run, processes=Processes(), log=log))
    texts = {row.messages[-1]["content"] for row in run.pool.rows()}
    return texts, files.read_json(run.manifest)["intake"]


def write(path, texts, **columns):
    rows = [{"instruction": text, **columns} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_sample_is_the_same_in_any_order_and_holds_a_smaller_one(run, tmp_path):
    texts = [f"question {n}" for n in range(200)]
    path = write(tmp_path / "pool.jsonl", [*texts, *texts[:5]])
    found, counts = take(run, path, sample=40)
    assert len(found) == 40 and found != set(texts[:40])
    assert counts == {
        "read": 205,
        "rejected": 0,
        "duplicates": 5,
        "kept": 40,
        "not_sampled": 160,
    }
    assert not check_sums(funnel(run, REPORTS), REPORTS)
    half = sum(int(text.split()[1]) < 100 for text in found)
    assert 10 <= half <= 30  # from all over the file
    write(path, reversed(texts))
    assert take(run, path, sample=40)[0] == found
    assert take(run, path, sample=10)[0] < found
    for sample in (0, 200, 1000):
        everything, counts = take(run, path, sample=sample)
        assert everything == set(texts) and "not_sampled" not in counts
    assert len(take(run, path, limit=50, sample=20)[0] & set(texts[150:])) == 20


def test_what_is_filtered_is_counted(run, tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text('{"text": "a", "toxic": false}\n{"text": "b", "toxic": true}\n{x\n')
    for wanted in ("False", "false"):
        found, counts = take(run, path, require={"toxic": wanted})
        assert found == {"a"}
        assert counts == {
            "read": 3,
            "rejected": 1,
            "duplicates": 0,
            "kept": 1,
            "filtered": 1,
        }
        assert not check_sums(funnel(run, REPORTS), REPORTS)


def test_a_requirement_that_no_row_meets_says_what_there_is(run, tmp_path):
    path = write(tmp_path / "pool.jsonl", ["a", "b"], language="English")
    with pytest.raises(RequestError) as told:
        take(run, path, require={"language": "english"})
    assert "language is to be 'english', and is 'English' (2 rows)" in str(told.value)
    with pytest.raises(
        RequestError, match=r"lang is to be 'en'.*columns are instruction, language"
    ):
        take(run, path, require={"lang": "en"})


def test_a_pool_of_which_nothing_can_be_used_names_the_first_row(run, tmp_path):
    path = write(tmp_path / "pool.jsonl", [" ", "\n"])
    with pytest.raises(WorkError, match=r"pool\.jsonl, line 1: field instruction is empty"):
        take(run, path)


def test_a_change_that_keeps_size_and_time_is_noticed(run, tmp_path):
    path = write(tmp_path / "pool.jsonl", ["name a river"])
    before = path.stat()
    assert take(run, path)[0] == {"name a river"}
    write(path, ["name a tower"])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert take(run, path)[0] == {"name a tower"}
    shard = Path(os.fspath(run.pool.path(0)))
    written = shard.stat().st_mtime_ns
    os.utime(path)  # a new time alone is no change
    take(run, path)
    assert shard.stat().st_mtime_ns == written


def test_a_pool_of_an_older_version_whose_file_is_gone_is_gone_on_with(run, tmp_path):
    path = write(tmp_path / "pool.jsonl", ["a"])
    take(run, path)
    names = ("path", "split", "instruction_field", "id_field", "require", "max_chars", "limit")
    knobs = PoolKnobs(path=(str(path),))
    asked = {name: getattr(knobs, name) for name in names} | {"path": [str(path)], "shards": 8}
    made_under = fingerprint("intake", 1, asked)
    marks.forget(pool_mark(run))
    old_mark = run.root / "instructions" / "intake.json"
    files.write_twice(old_mark, {"fingerprint": f"{made_under}/of-then", "ste_jax": "0.1"})
    path.unlink()
    with pytest.warns(UserWarning, match="going on with the pool"):
        assert take(run, path)[0] == {"a"}
    with pytest.raises(RequestError, match="does not exist"):
        take(run, path, sample=1)


def die_in_second_shard(monkeypatch):
    """A kill after the first shard of a table is written."""
    plain, written = Table.write, []

    def killed(self, shard, rows):
        if written:
            raise KeyboardInterrupt
        written.append(shard)
        return plain(self, shard, rows)

    monkeypatch.setattr(Table, "write", killed)


def test_a_pool_of_which_half_is_another_is_not_taken_for_whole(run, tmp_path, monkeypatch):
    path = write(tmp_path / "pool.jsonl", [f"first {n}" for n in range(20)])
    take(run, path)
    write(path, [f"second {n}" for n in range(20)])
    with monkeypatch.context() as patch:
        die_in_second_shard(patch)
        with pytest.raises(KeyboardInterrupt):
            take(run, path)
    path.rename(tmp_path / "gone")
    with pytest.raises(RequestError, match="does not exist"):
        take(run, path)
    (tmp_path / "gone").rename(path)
    assert take(run, path)[0] == {f"second {n}" for n in range(20)}


def take_labelled(run, path, **knobs):
    """Read the file as a labelled set; its instructions."""
    sets = (LabelledSetKnobs(name="mine", data=str(path), **knobs),)
    config = SimpleNamespace(evaluate=SimpleNamespace(sets=sets))
    log = lambda *_, **__: None  # noqa: E731
    take_in_labelled(Context(config=config, run=run, processes=Processes(), log=log))
    assert is_read(run, sets[0])
    return {row.messages[-1]["content"] for row in run.labelled("mine").rows()}


def test_a_labelled_set_whose_file_is_gone_is_gone_on_with(run, tmp_path, monkeypatch):
    (run.root / "instructions").mkdir(parents=True)
    path = tmp_path / "pairs.jsonl"
    answers = {"response_a": "a", "response_b": "b", "label": "A"}
    texts = {f"question {n}" for n in range(8)}
    write(path, texts, **answers)
    assert take_labelled(run, path) == texts
    path.rename(tmp_path / "gone")
    with pytest.warns(UserWarning, match="going on with the pairs of mine"):
        assert take_labelled(run, path) == texts
    for other in ({"path": tmp_path / "typo.jsonl"}, {"path": path, "by": ("section",)}):
        with pytest.raises(RequestError, match=r"\.jsonl"):
            take_labelled(run, **other)
    (tmp_path / "gone").rename(path)
    write(path, {f"other {n}" for n in range(8)}, **answers)
    with monkeypatch.context() as patch:
        die_in_second_shard(patch)
        with pytest.raises(KeyboardInterrupt):
            take_labelled(run, path)
    path.unlink()
    with pytest.raises(RequestError, match=r"pairs\.jsonl"):  # half of it is another
        take_labelled(run, path)
