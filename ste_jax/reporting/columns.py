"""How are a few columns of a table read without its texts?

Reports count rows far more often than they show them. A shard's bytes are read whole, which proves
them whole; of its columns only those that are counted become rows, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ste_jax.errors import WorkError
from ste_jax.records import Judgment, damaged, open_parquet
from ste_jax.run.layout import Table


def read_columns(table: Table[Any], *names: str) -> Iterator[tuple[Any, ...]]:
    """The named columns of all rows that are there, shard by shard; missing shards are passed over.

    Raises:
      WorkError: a shard is not a readable table of this version; names the file.
    """
    for shard in range(table.shards):
        path = table.path(shard)
        if not path.exists():
            continue
        parquet = open_parquet(path.read_bytes(), str(path))
        try:
            for batch in parquet.iter_batches(columns=list(names)):
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise WorkError(damaged(str(path), str(error))) from error


def read_verdicts(table: Table[Judgment]) -> Iterator[Judgment]:
    """Judgments with their texts and token ids left empty: enough to measure a judge by."""
    names = ("id", "prompt_id", "judge", "iteration", "sample", "verdict", "failure", "forced",
             "finish_reason", "free_tokens")  # fmt: skip
    for values in read_columns(table, *names):
        yield Judgment(text="", token_ids=(), **dict(zip(names, values, strict=True)))
