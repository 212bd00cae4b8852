"""Columns whose own names have dots."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from ste_jax.config.schema import PoolKnobs
from ste_jax.records import Instruction
from ste_jax.stages.intake import read_pool
from ste_jax.stages.turns import at_path, column_of


def read(path, **knobs):
    rows = list(read_pool(PoolKnobs(path=(str(path),), **knobs)))
    assert all(isinstance(row, Instruction) for row in rows), rows
    return [(row.messages[0]["content"], row.extra) for row in rows]


def test_csv(tmp_path):
    path = tmp_path / "pool.csv"
    path.write_text("conversation.0.content,lang\nName a river.,en\n")
    found = read(path, instruction_field="conversation.0.content")
    assert found == [("Name a river.", '{"lang": "en"}')]


def test_parquet(tmp_path):
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.table({"data.prompt": ["Name a river."], "x": [1]}), path)
    assert read(path, instruction_field="data.prompt") == [("Name a river.", '{"x": 1}')]


def test_require(tmp_path):
    path = tmp_path / "meta.csv"
    path.write_text("instruction,meta.lang\nName a river.,en\nNomme un lac.,fr\n")
    assert read(path, require={"meta.lang": "en"}) == [("Name a river.", '{"meta.lang": "en"}')]


def test_a_name_goes_before_a_path():
    row = {"a.b": 1, "a": {"b": 2, "c": [3, {"d.e": 4}]}, "f[0]": 5, "g.h": {"i": 6}}
    paths = ["a.b", "a.c[0]", "a.c[1].d.e", "f[0]", "g.h.i", "a.c[2]", "g", "a.b.c", "a.c.d"]
    assert [at_path(row, path) for path in paths] == [1, 3, 4, 5, 6, None, None, None, None]
    assert [column_of(row, path) for path in ("a.b", "a.c[0]", "g.h.i", "z")] == [
        "a.b",
        "a",
        "g.h",
        "",
    ]
