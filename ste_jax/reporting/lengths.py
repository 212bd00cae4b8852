"""How long are the better and the worse answers, and how often would length alone be right?

Where the longer answer (or the shorter) is the better one far more often than not, the pairs leak
which answer is better, and a judge can learn to count. The report also says how many pairs were too
long for a judge.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from ste_jax.config.schema import EvaluateKnobs
from ste_jax.evaluation.metrics import with_intervals
from ste_jax.records import Pair
from ste_jax.reporting.columns import read_columns
from ste_jax.reporting.funnel import read_config
from ste_jax.reporting.page import Safe, note, section, table
from ste_jax.run.layout import RunDir
from ste_jax.run.tables import Table


def length_table(run: RunDir) -> list[dict[str, Any]]:
    """One row for the constructed pairs and one for each set of labelled pairs that is there.

    Lengths are in characters. `longer_one_right` is the share of pairs whose longer answer is the
    better one, `shorter_one_right` that of those whose shorter one is; two of one length count half
    to either.
    """
    asked = read_config(run).get("evaluate", {})
    bootstrap = asked.get("bootstrap", EvaluateKnobs().bootstrap)
    tables: dict[str, Table[Pair]] = {"constructed": run.pairs}
    tables |= {each["name"]: run.labelled(each["name"]) for each in asked.get("sets", ())}
    rows = [_row(name, pairs, bootstrap) for name, pairs in tables.items()]
    return [row for row in rows if row["n"]]


def _row(name: str, pairs: Table[Pair], bootstrap: int) -> dict[str, Any]:
    both = [(len(a), len(b)) for a, b in read_columns(pairs, "chosen", "rejected")]
    if not both:
        return {"pairs": name, "n": 0}
    chosen, rejected = zip(*both, strict=True)
    halves = np.asarray([1 + (a > b) - (a < b) for a, b in both], np.int64)
    twos = np.full(len(both), 2)
    shares = with_intervals(
        {"longer_one_right": (halves, twos), "shorter_one_right": (twos - halves, twos)},
        bootstrap,
        seed=0,
    )
    return {
        "pairs": name,
        "n": len(both),
        "chosen_mean": statistics.fmean(chosen),
        "chosen_median": statistics.median(chosen),
        "rejected_mean": statistics.fmean(rejected),
        "rejected_median": statistics.median(rejected),
        "equally_long": int((halves == 1).sum()),
        **shares,
    }


def lengths_section(rows: list[dict[str, Any]], header: list[str], body: list[list[str]]) -> Safe:
    """The table as a section of the report; empty before there are pairs."""
    if not rows:
        return Safe("")
    remark = (
        "In characters. The longer one right: how often a judge would be right that only ever "
        "chose the longer answer; where both are equally long it is right in half. From 0.5 it "
        "should not be far."
    )
    return section("Lengths of the answers", table(header, body), note(remark))


def left_out(measured: Mapping[str, Any]) -> str:
    """A sentence about the pairs that a judge had no room for, if there are any."""
    too_long = measured.get("n_too_long", 0)
    if not too_long:
        return ""
    return (
        f" For {too_long} of them it had no room in one order or both (too long); such prompts "
        "are in no share."
    )
