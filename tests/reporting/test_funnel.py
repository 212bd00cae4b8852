"""The funnel counts what the tables hold, and a count that does not add up is found."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from etils import epath

from ste_jax.records import LabelScore
from ste_jax.reporting.columns import read_columns, read_verdicts
from ste_jax.reporting.funnel import check_sums, funnel
from ste_jax.run.layout import RunDir
from ste_jax.run.tables import Table
from ste_jax.system import files
from ste_jax.system.errors import RequestError, WorkError
from tests.reports import REPORTS


def rows_of(table: Table[Any]) -> list[dict[str, Any]]:
    """A table as others read it."""
    frame = pd.read_parquet(str(table.directory)).astype(object)
    return list(frame.where(frame.notna(), None).to_dict("records"))


def test_a_sound_run_adds_up(whole_run: RunDir) -> None:
    counts = funnel(whole_run, REPORTS)
    assert check_sums(counts, REPORTS) == []
    assert len(counts["iterations"]) == 2 and len(counts["evaluations"]) == 3
    json.dumps(counts, allow_nan=False)


def test_the_counts_are_those_of_the_tables(whole_run: RunDir) -> None:
    counts = funnel(whole_run, REPORTS)
    selection, pairs = rows_of(whole_run.selection), rows_of(whole_run.pairs)
    split = {row["id"]: row["split"] for row in selection}
    assert counts["selection"]["fates"] == Counter(row["fate"] for row in selection)
    assert counts["selection"]["kept"]["train"] == Counter(
        row["category"] for row in selection if row["split"] == "train"
    )
    assert counts["pairs"]["by_split"] == Counter(split[row["instruction_id"]] for row in pairs)
    assert counts["pairs"]["dropped"] == Counter(
        row["reason"] for row in rows_of(whole_run.dropped_pairs)
    )
    assert counts["labels"]["without_category"] == sum(
        row["category"] is None for row in rows_of(whole_run.labels)
    )

    iteration = whole_run.iteration(2)
    found = counts["iterations"][1]
    labels = {row["id"]: row["label"] for row in rows_of(iteration.prompts)}
    judgments = rows_of(iteration.judgments)
    right = [row for row in judgments if row["verdict"] == labels[row["prompt_id"]]]
    per_prompt = Counter(Counter(row["prompt_id"] for row in judgments).values())
    assert found["prompts"] == len(labels)
    assert found["judgments"] == len(judgments)
    assert found["correct"] == len(right)
    assert found["with_correct"] == len({row["prompt_id"] for row in right})
    assert found["samples"] == {str(n): per_prompt[n] for n in sorted(per_prompt)}
    assert found["waves"] == {"1": per_prompt[2], "2": per_prompt[4], "3": per_prompt[8]}
    assert found["kept"] == Counter(row["label"] for row in rows_of(iteration.training))
    assert min(found["parsed"], found["forced"], found["unparsed"]) > 0


def test_a_verdict_forced_in_vain_is_without_one(own_run: RunDir) -> None:
    iteration = own_run.iteration(1)
    before = funnel(own_run, REPORTS)["iterations"][0]
    shard = next(s for s in range(3) if any(j.forced for j in iteration.judgments.read(s)))
    rows = iteration.judgments.read(shard)
    place = next(n for n, row in enumerate(rows) if row.forced and row.verdict)
    rows[place] = dataclasses.replace(rows[place], verdict=None)
    iteration.judgments.write(shard, rows)
    counts = funnel(own_run, REPORTS)
    after = counts["iterations"][0]
    assert after["forced"] == before["forced"] - 1
    assert after["unparsed"] == before["unparsed"] + 1
    assert not [
        told for told in check_sums(counts, REPORTS) if "judgments" in told or "failures" in told
    ]


def drop_last(table: Table[Any]) -> None:
    """Lose one row of a table."""
    shard = max(range(table.shards), key=lambda each: len(table.read(each)))
    table.write(shard, table.read(shard)[:-1])


def rewrite(path: epath.Path, change: Callable[[Any], None]) -> None:
    value = files.read_json(path)
    change(value)
    files.write_json(path, value)


def lose_a_verdict(run: RunDir) -> None:
    """A judgment that has a verdict, no force, and a failure."""
    table = run.iteration(1).judgments
    rows = table.read(0)
    rows[0] = dataclasses.replace(rows[0], verdict="A", failure="cut_off", forced=False)
    table.write(0, rows)


def move_a_pair(run: RunDir) -> None:
    rows = run.pairs.read(0)
    rows[0] = dataclasses.replace(rows[0], instruction_id="of nobody")
    run.pairs.write(0, rows)


BREAKAGES: dict[str, Callable[[RunDir], None]] = {
    "rows read = rejected + duplicates + kept": lambda run: rewrite(
        run.manifest, lambda value: value["intake"].update(rejected=0)
    ),
    "rows kept at intake = rows of the pool": lambda run: drop_last(run.pool),
    "rows of the pool = with + without a category": lambda run: drop_last(run.labels),
    "rows of the pool = sum of the fates": lambda run: drop_last(run.selection),
    "fate kept = rows selected": lambda run: drop_last(run.selected),
    "rows selected = pairs + dropped": lambda run: drop_last(run.dropped_pairs),
    "pairs of no selected instruction = 0": move_a_pair,
    "iteration 1: judgments = parsed + forced + unparsed": lose_a_verdict,
    "iteration 1: prompts = 2 x training pairs": lambda run: drop_last(run.iteration(1).prompts),
    "iteration 1: judgments of no prompt = 0": lambda run: drop_last(run.iteration(1).prompts),
    "iteration 1: prompts without a judgment = 0": lambda run: run.iteration(1).judgments.write(
        0, []
    ),
    "iteration 1: kept without a correct judgment = 0": lambda run: run.iteration(
        1
    ).judgments.write(0, []),
    "iteration 2: kept A = its training rows": lambda run: rewrite(
        run.iteration(2).curation, lambda value: value["kept"].update(A=1)
    ),
    "iteration 2: prompts = kept + dropped": lambda run: rewrite(
        run.iteration(2).curation, lambda value: value["dropped"].clear()
    ),
    "evaluation 0: prompts = 2 x held-out pairs": lambda run: drop_last(
        run.iteration(0).heldout.prompts
    ),
    "evaluation 2: judgments = prompts x votes": lambda run: drop_last(
        run.iteration(2).heldout.judgments
    ),
}


@pytest.mark.parametrize("equation", BREAKAGES)
def test_a_broken_sum_is_found(own_run: RunDir, equation: str) -> None:
    BREAKAGES[equation](own_run)
    wrong = check_sums(funnel(own_run, REPORTS), REPORTS)
    assert [told for told in wrong if told.startswith(f"{equation}: ")], wrong


def test_a_run_that_is_on_its_way_adds_up(fake_run: Callable[..., Any]) -> None:
    fake = fake_run().begin()
    iteration = fake.run.iteration(1)
    steps = [
        fake.select,
        fake.make_pairs,
        lambda: fake.evaluate(fake.run.iteration(0)),
        lambda: fake.annotate(iteration),
        lambda: fake.curate(iteration),
    ]
    for step in steps:
        step()
        assert check_sums(funnel(fake.run, REPORTS), REPORTS) == []
    assert funnel(fake.run, REPORTS)["iterations"][0]["complete"]


def test_shards_that_are_missing_are_no_fault(own_run: RunDir) -> None:
    run = own_run
    before = funnel(run, REPORTS)
    for table in (run.labels, run.pairs, run.iteration(1).judgments, run.iteration(2).training):
        files.remove(table.path(1))
    counts = funnel(run, REPORTS)
    assert counts["iterations"][0]["judgments"] < before["iterations"][0]["judgments"]
    assert not counts["pairs"]["complete"] and not counts["iterations"][0]["annotated"]
    assert check_sums(counts, REPORTS) == []


def test_what_is_no_run_is_told(tmp_path: Any) -> None:
    with pytest.raises(RequestError, match="is not a run"):
        funnel(RunDir(epath.Path(tmp_path)), REPORTS)


def test_columns_are_the_rows_columns(whole_run: RunDir) -> None:
    table = whole_run.iteration(1).judgments
    rows = list(table.rows())
    assert list(read_columns(table, "sample", "id")) == [(row.sample, row.id) for row in rows]
    light = [dataclasses.replace(row, text="", token_ids=()) for row in rows]
    assert list(read_verdicts(table)) == light


def test_a_damaged_or_foreign_shard_is_named(fake_run: Callable[..., Any]) -> None:
    run = fake_run().begin().run
    path = run.pool.path(1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WorkError, match=r"00001-of-00003\.parquet is damaged"):
        list(read_columns(run.pool, "id"))
    score = LabelScore(id="x", kind="category", label="coding", logprob=-1.0, calibrated=0.0)
    Table(run.pool.directory, LabelScore, 3).write(1, [score])
    with pytest.raises(WorkError, match=r"00001-of-00003\.parquet is damaged"):
        list(read_columns(run.pool, "id", "messages"))
