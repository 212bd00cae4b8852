"""The shard is the unit of work: nothing is done twice, nothing is lost, whatever stops it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from etils import epath

from ste_jax import records
from ste_jax.parallel.processes import Processes
from ste_jax.records import DroppedPair, Label, shard_of
from ste_jax.run import marks, sharded
from ste_jax.run.changes import Changes, RecipeStep
from ste_jax.run.sharded import run_sharded
from ste_jax.run.sharded_work import ShardedWork, Words
from ste_jax.run.tables import Table
from ste_jax.system import files
from ste_jax.system.errors import WorkError

SHARDS = 4


class Stop(Exception):
    pass


def row(name: str) -> DroppedPair:
    return DroppedPair(id=name, reason="r", text="t")


class Bench:
    """A stage that labels rows, and remembers which it was given."""

    def __init__(self, root):
        self.root = epath.Path(root)
        self.inputs = [row(f"row-{n}") for n in range(20)]
        self.first = Table(self.root / "first", DroppedPair, SHARDS)
        self.last = Table(self.root / "last", Label, SHARDS)
        self.worked: list[str] = []
        self.made_under = "one"
        self.stop_after = 10**9
        self.together = self.both = False
        self.by_model = True
        self.ready = lambda: None
        self.derived = ()
        self.keep_every = None
        self.counted: list[int] = []

    def run(self, processes=None, changes=None):
        stage = ShardedWork(
            name="label",
            made_under=self.made_under,
            home=self.root,
            inputs=lambda shard: [r for r in self.inputs if shard_of(r.id, SHARDS) == shard],
            outputs=(self.first, self.last),
            input_of=lambda table, r: r.id,
            together=self.together,
            ready=self.ready,
            derived=self.derived,
            by_model=self.by_model,
            words=Words(
                step=RecipeStep(title="label", takes=("intake",), asks="seed"),
                rows="instructions",
                verb="are labelled",
                gone="are no longer in the pool",
            ),
        )
        return run_sharded(
            stage,
            self.work,
            processes or Processes(),
            on_shard=lambda shard, rows: self.counted.append(rows),
            changes=changes,
            keep_every=self.keep_every,
        )

    def lines(self, **given):
        """What a dry pass says of what is not done."""
        return [each.line for each in self.foretold(**given) if each.fate != "done"]

    def foretold(self, **given):
        """What a dry pass foretells."""
        changes = Changes(dry=True, **given)
        with files.reading_only():
            assert not self.run(changes=changes)
        return changes.planned

    def work(self, rows):
        waiting = []
        for each in rows:
            waiting.append(each)
            if len(waiting) == 3:  # out of order, over the borders of shards
                yield from map(self.label, reversed(waiting))
                waiting = []
        yield from map(self.label, waiting)

    def label(self, each):
        if len(self.worked) == self.stop_after:
            raise Stop
        self.worked.append(each.id)
        odd = int(each.id.split("-")[1]) % 2
        made = Label(id=each.id, category="c", difficulty=None, failure=None, text="")
        if self.both:
            return each, ([row(each.id)], [made])
        return each, ([row(each.id)], []) if odd else ([], [made])

    def ids(self):
        return sorted([r.id for r in self.first.rows()] + [r.id for r in self.last.rows()])


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_all_rows_once_and_nothing_the_second_time(bench):
    assert bench.run()
    assert bench.ids() == sorted(r.id for r in bench.inputs)
    assert not bench.run()
    assert len(bench.worked) == 20


def test_rows_in_a_shard_are_ordered_by_id(bench):
    bench.run()
    for shard in range(SHARDS):
        ids = [r.id for r in bench.last.read(shard)]
        assert ids == sorted(ids)


@pytest.mark.parametrize("after", [0, 1, 7, 13, 19])
def test_a_stop_loses_at_most_the_open_shards(bench, after):
    bench.stop_after = after
    with pytest.raises(Stop):
        bench.run()
    finished = len(bench.ids())
    bench.stop_after, bench.worked = 10**9, []
    bench.run()
    assert bench.ids() == sorted(r.id for r in bench.inputs)
    assert len(bench.worked) == 20 - finished


def test_one_more_input_is_one_more_row_of_work(bench):
    bench.run()
    bench.worked = []
    bench.inputs.append(row("row-99"))
    bench.run()
    assert bench.worked == ["row-99"]
    assert "row-98" not in bench.ids() and "row-99" in bench.ids()


def test_an_input_that_went_takes_its_rows_along(bench):
    bench.run()
    gone = bench.inputs.pop(3)
    bench.worked = []
    bench.run()
    assert bench.worked == []
    assert gone.id not in bench.ids() and len(bench.ids()) == 19


@pytest.mark.parametrize("together", [False, True])
def test_rows_whose_inputs_went_come_back_with_them(bench, together):
    bench.together = bench.both = together
    bench.run()
    everything = bench.inputs
    first = {path: path.read_bytes() for path in Path(bench.root).rglob("*.parquet")}
    bench.worked = []
    for few in (everything[:15], everything[10:12], []):  # each leaves others out
        bench.inputs = few
        bench.run()
        assert set(bench.ids()) == {each.id for each in few}
    bench.inputs = [*everything, row("row-99")]
    bench.run()
    assert bench.worked == ["row-99"]
    bench.inputs = everything
    assert bench.run() and not bench.run()
    assert bench.worked == ["row-99"]
    assert {path: path.read_bytes() for path in first} == first


def test_rows_whose_inputs_went_come_back_under_their_fingerprint_alone(bench):
    bench.run()
    everything, bench.inputs = bench.inputs, bench.inputs[:5]
    bench.run()
    bench.made_under, bench.inputs, bench.worked = "two", everything, []
    bench.run()
    assert len(bench.worked) == 20
    bench.made_under, bench.worked = "one", []
    bench.run()
    assert bench.worked == [] and bench.ids() == sorted(r.id for r in everything)


@pytest.mark.parametrize("writes", range(4))
def test_a_kill_while_a_shard_loses_rows_loses_none(bench, monkeypatch, writes):
    bench.run()
    everything, bench.inputs, bench.worked = bench.inputs, [], []
    done, plain = [], files.write_whole

    def killed(path, data):
        if str(path).endswith(".parquet"):
            if len(done) == writes:
                raise Stop
            done.append(path)
        plain(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", killed)
        with pytest.raises(Stop):
            bench.run()
    bench.inputs = everything
    bench.run()
    assert bench.worked == [] and bench.ids() == sorted(r.id for r in everything)


def test_another_fingerprint_begins_anew_and_the_first_comes_back(bench):
    bench.run()
    first = {path: path.read_bytes() for path in Path(bench.root).rglob("*.parquet")}
    bench.made_under, bench.worked = "two", []
    bench.run()
    assert len(bench.worked) == 20
    bench.made_under, bench.worked = "one", []
    assert not bench.run()
    assert bench.worked == []
    assert {path: path.read_bytes() for path in first} == first


@pytest.mark.parametrize("move", range(2))
def test_a_kill_while_tables_are_moved_aside_loses_none(bench, monkeypatch, move):
    bench.run()
    ids, moves, plain = bench.ids(), [], files.move

    def killed(source, target):
        if len(moves) == move:
            raise Stop
        moves.append(source)
        plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "move", killed)
        bench.made_under = "two"
        with pytest.raises(Stop):
            bench.run()
    bench.made_under, bench.worked = "one", []
    bench.run()
    assert bench.worked == [] and bench.ids() == ids


def test_nothing_makes_room_for_work_that_cannot_begin(bench):
    bench.run()
    ids, bench.made_under = bench.ids(), "two"

    def refuse():
        raise Stop

    bench.ready = refuse
    with pytest.raises(Stop):
        bench.run()
    assert bench.ids() == ids and not (bench.root / "set_aside").exists()
    bench.made_under, bench.worked = "one", []
    assert not bench.run() and bench.worked == []


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", None])
def test_a_damaged_mark_is_mended(bench, damage):
    bench.run()
    mark = Path(bench.root) / "label.mark.json"
    whole, bench.worked = mark.read_bytes(), []
    if damage is None:
        mark.unlink()
    else:
        mark.write_bytes(damage)
    assert not bench.run()
    assert bench.worked == [] and mark.read_bytes() == whole


def test_a_mark_with_any_bit_flipped_is_mended(bench):
    bench.run()
    mark = Path(bench.root) / "label.mark.json"
    whole = mark.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        mark.write_bytes(bytes(changed))
        assert marks.marked(epath.Path(mark)) == "one", bit


def test_of_a_stage_whose_mark_is_lost_twice_the_tables_are_moved_and_not_removed(bench, capsys):
    bench.run()
    ids = bench.ids()
    told = (
        r"label: 20 instructions are labelled again, since its mark is lost.*{}; if .* move it back"
    )
    for place in ("label-unknown", "label-unknown-2", "label-unknown-3"):
        for name in ("label.mark.json", "label.mark.json.copy"):
            (bench.root / name).unlink()
        bench.run()
        assert re.match(told.format(place), capsys.readouterr().err.splitlines()[0])
        kept = [bench.root / "set_aside" / place / name for name in ("first", "last")]
        found = [Table(kept[0], DroppedPair, SHARDS), Table(kept[1], Label, SHARDS)]
        assert sorted(row.id for table in found for row in table.rows()) == ids
    # what it says helps
    bench.inputs.append(row("row-98"))
    for name in ("first", "last"):
        files.remove(bench.root / name)
        files.move(bench.root / "set_aside/label-unknown" / name, bench.root / name)
    bench.worked = []
    bench.run()
    assert bench.worked == ["row-98"]


@pytest.mark.parametrize("table", ["first", "last"])
def test_the_rows_of_a_file_that_was_moved_away_are_made_again_and_no_others(bench, table):
    bench.run()
    path = getattr(bench, table).path(2)
    lost = [r.id for r in getattr(bench, table).read(2)]
    before, other = path.read_bytes(), "last" if table == "first" else "first"
    kept = getattr(bench, other).path(2).read_bytes()
    path.unlink()
    bench.worked = []
    bench.run()
    assert sorted(bench.worked) == sorted(lost) != []
    assert path.read_bytes() == before and getattr(bench, other).path(2).read_bytes() == kept


def test_tables_that_belong_together_are_made_together(bench):
    """Else scores whose file was lost would never be made again."""
    bench.together = True
    bench.both = True
    bench.run()
    before = bench.first.path(1).read_bytes()
    bench.first.path(1).unlink()
    bench.worked = []
    bench.run()
    assert sorted(bench.worked) == sorted(r.id for r in bench.inputs if shard_of(r.id, SHARDS) == 1)
    assert bench.first.path(1).read_bytes() == before


def test_a_table_that_was_not_written_as_it_was_to_be_is_told(bench, monkeypatch):
    plain = files.write_whole

    def cut(path, data):
        rows = records.from_parquet(data, DroppedPair if "first" in str(path) else Label, "x")
        kind = DroppedPair if "first" in str(path) else Label
        plain(path, records.to_parquet(rows[1:], kind))

    monkeypatch.setattr(files, "write_whole", cut)
    with pytest.raises(WorkError, match=r"first/0000.*holds \d rows, and \d were to be written"):
        bench.first.write(0, bench.inputs[:5])


def test_shards_are_divided_over_processes(bench, monkeypatch):
    class Alone(Processes):
        """One of two processes whose meetings are let pass."""

        def gather(self, name, value):
            return [value] * self.count

        def from_first(self, name, make):
            return make()

    monkeypatch.setattr(sharded, "_SEEN_WITHIN_S", 0.0)
    with pytest.raises(WorkError, match=r"00000-of-00004\.parquet was written by no process"):
        Bench.run(bench, Alone(index=1, count=2))
    assert [shard for shard in range(SHARDS) if bench.last.done(shard)] == [1, 3]
    Bench.run(bench, Alone(index=0, count=2))
    assert bench.ids() == sorted(r.id for r in bench.inputs)
