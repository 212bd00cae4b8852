"""A stage that works shard by shard says in a line what it makes again, and what goes with that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ste_jax.run import marks
from ste_jax.system import files
from ste_jax.system.errors import WorkError
from tests.run.test_sharded import Bench, row


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


LOST = "since its knobs, its inputs, its model or its version are others now"


def first_line(capsys):
    """The first line that a start has said, up to where what was there lies."""
    return re.sub(r"\. What was there lies in .*", "", capsys.readouterr().err.splitlines()[0])


def test_a_line_counts_what_is_made_again_and_not_what_comes_back(bench, capsys):
    bench.inputs, everything = bench.inputs[:15], bench.inputs
    assert bench.lines() == ["label: 15 instructions are labelled, for the first time"]
    bench.run()
    assert capsys.readouterr().err == ""
    bench.inputs, bench.made_under = everything, "two"
    assert bench.lines() == [f"label: 15 instructions are labelled again, {LOST}"]
    bench.run()
    assert first_line(capsys) == f"label: 15 instructions are labelled again, {LOST}"
    bench.made_under = "one"
    assert bench.lines() == [f"label: 5 instructions are labelled again, {LOST}"]
    bench.run()
    assert first_line(capsys) == f"label: 5 instructions are labelled again, {LOST}"
    bench.made_under = "two"
    assert bench.lines() == [f"label: what was set aside comes back, {LOST}"]
    bench.run()
    assert first_line(capsys) == f"label: what was set aside comes back, {LOST}"
    assert bench.lines() == []


def test_rows_that_are_set_aside_get_a_line(bench, capsys):
    bench.run()
    bench.inputs = bench.inputs[:17]
    what = "label: what was made of 3 instructions is set aside, since they are no longer in the "
    there = f"pool. It lies in {marks.aside(bench.root / 'label.mark.json', 'one')}/unwanted, and "
    line = f"{what}{there}comes back with them"
    assert bench.lines() == [line]
    capsys.readouterr()
    bench.run()
    assert line in capsys.readouterr().err.splitlines()


def test_what_goes_with_rows_that_are_made_again_is_said(bench, capsys):
    bench.derived = (bench.root / "curate.mark.json", bench.root / "training")
    bench.run()
    more = row("row-99")
    bench.inputs.append(more)
    for another, line in (
        ("one", "label: 1 more instruction is labelled; 20 of 21 are there, and the training set "),
        ("two", "label: 21 instructions are labelled again, and the training set goes, "),
    ):
        marks.mark(bench.derived[0], "made of them")
        files.write_whole(bench.derived[1] / "rows", b"")
        bench.made_under = another
        (said,) = bench.lines()
        assert said.startswith(line)
        capsys.readouterr()
        bench.run()
        begins = line.replace("; 20 of 21 are there", "")
        assert capsys.readouterr().err.splitlines()[0].startswith(begins)
        assert not any(path.exists() for path in bench.derived)


def test_a_dry_pass_says_what_follows_from_what_is_made_again(bench):
    bench.run()
    assert bench.lines(redone={"select"}, others={"select"}) == []
    for upstream, what in (
        ("seed", "20 instructions are labelled again"),
        ("intake", "instructions that change, of 20, and new ones are labelled"),
    ):
        (found,) = bench.foretold(redone={upstream}, others={upstream})
        assert found.line == f"label: {what}, since {upstream} is made again"
        assert found.asks and not found.why and found.todo is None


def test_what_is_only_gone_on_with_asks_for_nothing(bench):
    bench.run()
    assert bench.lines(redone={"seed"}) == []  # the same seed, made again
    (found,) = bench.foretold(redone={"intake"})
    assert found.line == "label: instructions that intake adds are labelled"
    assert found.fate == "goes on" and not found.asks
    bench.inputs.append(row("row-99"))
    (found,) = bench.foretold()
    assert found.line == "label: 1 more instruction is labelled; 20 of 21 are there"
    assert (found.fate, found.asks, found.todo) == ("goes on", False, 1)


def test_rows_of_other_knobs_ask_and_so_do_rows_that_are_not_wanted_any_more(bench):
    (first,) = bench.foretold()
    assert (first.fate, first.asks, first.todo) == ("first", False, 20)
    bench.run()
    assert [each.fate for each in bench.foretold()] == ["done"]
    bench.inputs = bench.inputs[:17]
    (fewer,) = bench.foretold()
    assert (fewer.fate, fewer.asks) == ("aside", True)
    bench.made_under = "two"
    (again,) = bench.foretold()
    assert (again.fate, again.asks, again.todo) == ("again", True, 17)
    assert again.why == LOST.removeprefix("since ")
    bench.by_model = False
    assert not any(each.asks for each in bench.foretold())


@pytest.mark.parametrize("table", ["first", "last"])
def test_a_damaged_shard_that_is_set_aside_anyway_stops_nothing(bench, capsys, table):
    bench.run()
    path = Path(getattr(bench, table).path(2))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(WorkError):  # as long as it is to be gone on with
        bench.run()
    bench.made_under, bench.worked = "two", []
    line = f"label: some instructions are labelled again, {LOST}"
    assert bench.lines() == [line]
    bench.run()
    assert first_line(capsys) == line
    assert len(bench.worked) == 20 and bench.ids() == sorted(r.id for r in bench.inputs)
    kept = marks.aside(bench.root / "label.mark.json", "one") / table / path.name
    assert kept.read_bytes() == damaged


def test_one_row_is_spoken_of_as_one(bench):
    everything, bench.inputs = bench.inputs, bench.inputs[:1]
    assert bench.lines() == ["label: 1 instruction is labelled, for the first time"]
    bench.run()
    bench.inputs = everything[:2]
    assert bench.lines() == ["label: 1 more instruction is labelled; 1 of 2 are there"]
    bench.run()
    bench.inputs = everything[:1]
    (said,) = bench.lines()
    assert "made of 1 instruction is set aside, since it is no longer in the pool. " in said
    assert said.endswith("and comes back with it")
