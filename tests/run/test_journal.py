"""Rows are kept as they finish: a stop at any row, or in the middle of a line, loses no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.records import Judgment, LabelScore, Pair, shard_of
from ste_jax.run import journal
from ste_jax.run.journal import Journal
from ste_jax.system.errors import Preempted, WorkError
from tests.run.test_sharded import SHARDS, Bench, Stop, row

TYPES = (Judgment, LabelScore, Pair)


def judgment(text="t", ids=(1, 2), verdict=None):
    return Judgment(
        id="j",
        prompt_id="p",
        judge="k",
        iteration=1,
        sample=0,
        text=text,
        token_ids=ids,
        verdict=verdict,
        failure=None,
        forced=False,
        finish_reason="stop",
        free_tokens=2,
    )


def kept(place, shard, identity="one"):
    return journal.read(epath.Path(place), shard, identity, TYPES)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path / "bench")
    made.keep_every = 30.0
    return made


def files_of(bench):
    root = Path(bench.root)
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*.parquet")}


@settings(deadline=None)
@given(
    text=st.text(),
    ids=st.lists(st.integers(0, 2**31 - 1)),
    verdict=st.none() | st.text(max_size=3),
    number=st.floats(allow_nan=False),
    turns=st.lists(st.text(max_size=5), max_size=3),
)
def test_a_line_holds_the_rows_as_they_are(tmp_path_factory, text, ids, verdict, number, turns):
    place = epath.Path(tmp_path_factory.mktemp("journal"))
    rows = (
        [judgment(text, tuple(ids), verdict)],
        [LabelScore(id="l", kind="k", label=text, logprob=number, calibrated=-number)],
        [
            Pair(
                id="p",
                instruction_id="i",
                messages=tuple({"role": "user", "content": turn} for turn in turns),
                chosen=text,
                rejected="",
                modified_instruction="",
                source="s",
            )
        ],
    )
    with Journal(place, "one", 30.0) as made:
        made.add(3, "input", rows)
    assert kept(place, 3) == {"input": list(rows)}
    assert kept(place, 3, "two") == {} and kept(place, 2) == {}


def test_of_a_file_that_is_cut_or_damaged_anywhere_all_other_lines_count(tmp_path):
    with Journal(epath.Path(tmp_path), "one", 30.0) as made:
        for name in ("a", "b", "c"):
            made.add(0, name, ([judgment(name)], [], []))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for place in range(len(whole)):
        path.write_bytes(whole[:place])
        ended = sum(end - 1 <= place for end in ends)  # a line may lack its last byte
        assert list(kept(tmp_path, 0)) == ["a", "b", "c"][:ended]
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        hit = sum(end <= place for end in ends)
        lost = {hit} if place + 1 not in ends else {hit, hit + 1}  # two lines became one
        assert set(kept(tmp_path, 0)) == {n for i, n in enumerate("abc") if i not in lost}


@pytest.mark.parametrize("after", [1, 7, 13, 19])
@pytest.mark.parametrize("together", [False, True])
def test_a_stop_loses_no_row_that_had_finished(bench, tmp_path, after, together):
    bench.together = bench.both = together
    bench.stop_after = after
    with pytest.raises(Stop):
        bench.run()
    bench.stop_after = 10**9
    assert bench.run() and not bench.run()
    assert sorted(bench.worked) == sorted(each.id for each in bench.inputs)  # each of them once
    other = Bench(tmp_path / "undisturbed")
    other.together = other.both = together
    other.run()
    assert files_of(bench) == files_of(other)
    assert not list(Path(bench.root).rglob("*.journal"))


@pytest.mark.parametrize("after", [1, 7, 13, 19])
def test_what_was_done_before_a_stop_is_counted(bench, after):
    bench.stop_after = after
    with pytest.raises(Stop):
        bench.run()
    kept = sum(bench.counted)
    bench.stop_after = 10**9
    bench.run()
    assert kept and sum(bench.counted) == len(bench.inputs)


def killed_after(root, number):
    bench = Bench(root)
    bench.keep_every = 30.0
    plain, calls = Journal.add, 0

    def add_or_die(*given):
        nonlocal calls
        plain(*given)
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.add = add_or_die  # type: ignore[method-assign]
    bench.run()


@pytest.mark.parametrize("number", [1, 5, 11])
def test_a_kill_loses_no_row_that_had_finished(bench, number):
    process = multiprocessing.get_context("spawn").Process(
        target=killed_after, args=(bench.root, number)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    in_journal = sum(len(journal_ids(bench, shard)) for shard in range(SHARDS))
    had = in_journal + len(bench.ids())
    assert in_journal and had >= number
    bench.run()
    assert len(bench.worked) == 20 - had
    assert bench.ids() == sorted(each.id for each in bench.inputs)


def journal_ids(bench, shard):
    types = (bench.first.row_type, bench.last.row_type)
    return journal.read(bench.root / "label.journal", shard, bench.made_under, types)


def test_rows_of_another_fingerprint_wait_until_it_is_back(bench):
    bench.stop_after = 7
    with pytest.raises(Stop):
        bench.run()
    bench.made_under, bench.stop_after = "two", 12
    with pytest.raises(Stop):
        bench.run()
    assert len(bench.worked) == 12  # nothing of "one" was taken
    bench.made_under, bench.stop_after = "one", 10**9
    assert "7" not in bench.lines()[0] and "come" in bench.lines()[0]
    bench.run()
    assert len(bench.worked) == 12 + 13
    bench.made_under = "two"
    bench.run()
    assert len(bench.worked) == 12 + 13 + 15
    assert bench.ids() == sorted(each.id for each in bench.inputs)


def test_a_dry_run_counts_rows_of_the_journal_as_made(bench):
    bench.stop_after = 7
    with pytest.raises(Stop):
        bench.run()
    assert bench.lines() == ["label: 13 more instructions are labelled; 7 of 20 are there"]
    bench.made_under = "two"
    assert bench.lines()[0].startswith("label: 7 instructions are labelled again")


def test_rows_of_the_journal_whose_inputs_went_come_back_with_them(bench):
    bench.stop_after = 7
    with pytest.raises(Stop):
        bench.run()
    everything, bench.stop_after = bench.inputs, 10**9
    bench.inputs = [each for each in everything if each.id not in bench.worked]
    bench.run()
    assert len(bench.worked) == 20
    bench.inputs = everything
    bench.run()
    assert len(bench.worked) == 20 and len(bench.ids()) == 20


def test_a_journal_that_outlives_its_shards_is_removed(bench):
    bench.run()
    with Journal(bench.root / "label.journal", "one", 30.0) as made:
        first = bench.first.read(0) or bench.last.read(0)
        made.add(0, first[0].id, ([first[0]], []))
    before = files_of(bench)
    assert not bench.run() and len(bench.worked) == 20
    assert files_of(bench) == before and not (bench.root / "label.journal").exists()


def test_another_number_of_processes_takes_the_lines_of_all(bench):
    for name in ("row-1", "row-2"):
        with Journal(bench.root / "label.journal", "one", 30.0) as made:
            made.add(shard_of(name, SHARDS), name, bench.label(row(name))[1])
    bench.worked = []
    (bench.root / "label.mark.json").write_text('{"fingerprint": "one"}')
    bench.run()
    assert len(bench.worked) == 18 and not {"row-1", "row-2"} & set(bench.worked)


def test_what_a_stop_loses_is_said(bench, capsys, monkeypatch):
    from ste_jax.run import sharded

    def poll():
        if len(bench.worked) == 7:
            raise Preempted("asked to stop")

    monkeypatch.setattr(sharded.preemption, "poll", poll)
    plain = sharded.run_sharded
    monkeypatch.setattr(
        "tests.run.test_sharded.run_sharded",
        lambda *given, **more: plain(*given, **more, tokens_in_hand=lambda: 12_400),
    )
    with pytest.raises(Preempted):
        bench.run()
    assert (
        "stopped: label: 2 instructions in hand were not finished; their 12,400 tokens are drawn "
        "again\n"
    ) in capsys.readouterr().err


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.os, "write", full)
    with (
        pytest.raises(WorkError, match=r"could not append to .*: No space left on device; make"),
        Journal(epath.Path(tmp_path), "one", 30.0) as made,
    ):
        made.add(0, "a", ([judgment()], [], []))


def test_a_failure_to_sync_is_told_at_the_next_row(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SYNC_EVERY_S", 0.01)

    def full(*_):
        raise OSError(5, "Input/output error")

    with (
        pytest.raises(WorkError, match="Input/output error"),
        Journal(epath.Path(tmp_path), "one", 30.0) as made,
        monkeypatch.context() as patch,
    ):
        patch.setattr(journal.os, "fsync", full)
        made._open[0] = opened = journal._File(epath.Path(tmp_path / "00000.x"))
        made.add(0, "a", ([judgment()], [], []))
        made._keeper.join(10)
        assert not made._keeper.is_alive()
        opened._new = False
        made.add(0, "b", ([judgment()], [], []))


def test_a_file_that_goes_while_lines_are_counted_has_none(tmp_path, monkeypatch):
    place = epath.Path(tmp_path)
    with Journal(place, "one", 30.0) as keeping:
        keeping.add(0, "a", [[judgment()], [], []])
    assert journal.count(place, 0) == 1
    gone = place / "00000.gone.lines"
    there = journal._of_shard
    monkeypatch.setattr(journal, "_of_shard", lambda *of: [*there(*of), gone])
    assert journal.count(place, 0) == 1
