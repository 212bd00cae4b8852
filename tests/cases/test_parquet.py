"""Parquet: a value that cannot be read costs at most its row."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ste_jax.config.schema import PoolKnobs
from ste_jax.records import Instruction
from ste_jax.stages.intake import Rejected, read_pool
from ste_jax.system.errors import RequestError


def read(path, columns, names=None):
    pq.write_table(pa.table(columns, names), path)
    return list(read_pool(PoolKnobs(path=(str(path),))))


def bad_text(*parts: bytes):
    """A column of texts that was never looked at whether it is UTF-8."""
    return pa.array(parts, pa.binary()).cast(pa.large_binary()).view(pa.large_string())


def test_a_text_that_is_not_utf_8(tmp_path):
    first, second = read(tmp_path / "a.parquet", {"instruction": bad_text(b"caf\xe9", b"river")})
    assert isinstance(first, Rejected) and first.line == 1
    assert first.file.endswith("a.parquet") and "field instruction cannot be read" in first.reason
    assert isinstance(second, Instruction)


def test_odd_values_in_columns_that_nobody_asks_for(tmp_path):
    far = pa.array([0, 2**62], pa.int64())
    columns = {
        "instruction": ["Name a river.", "Name a lake."],
        "when": far.cast(pa.timestamp("us", tz="UTC")),
        "zone": pa.array([0, 1], pa.timestamp("us", tz="Nowhere/Land")),
        "note": bad_text(b"ok", b"caf\xe9"),
        "map": pa.array([[(1, "a")], [(2, "b")]], pa.map_(pa.int64(), pa.string())),
    }
    first, second = read(tmp_path / "b.parquet", columns)
    assert isinstance(first, Instruction) and isinstance(second, Instruction)
    kept = json.loads(first.extra)
    assert kept == {"when": "1970-01-01 00:00:00+00:00", "note": "ok", "map": {"1": "a"}}
    assert json.loads(second.extra) == {"map": {"2": "b"}}


def test_a_column_named_twice(tmp_path):
    with pytest.raises(RequestError, match=r"c\.parquet names the column 'prompt' twice"):
        read(tmp_path / "c.parquet", [pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"])


def test_a_file_that_is_cut_off(tmp_path):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"instruction": ["a"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RequestError, match=r"d\.parquet is not readable Parquet"):
        list(read_pool(PoolKnobs(path=(str(path),))))
