"""How are a few columns of a table read without its texts?

Reports count rows far more often than they show them. All bytes of a shard are read, since only so
its hash can be checked; but only the columns that are counted become rows, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ste_jax.records import Judgment, Prompt, damaged, open_parquet
from ste_jax.run.tables import Table
from ste_jax.system.errors import WorkError


def read_columns(table: Table[Any], *names: str) -> Iterator[tuple[Any, ...]]:
    """Yields the named columns of all rows, shard by shard; missing shards are passed over.

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


def read_prompts(table: Table[Prompt]) -> Iterator[Prompt]:
    """Prompts with their messages left empty: enough to tell which questions they are."""
    names = ("id", "pair_id", "order", "label")
    for values in read_columns(table, *names):
        yield Prompt(messages=(), **dict(zip(names, values, strict=True)))


def read_verdicts(table: Table[Judgment]) -> Iterator[Judgment]:
    """Judgments with their texts and token ids left empty: enough to measure a judge by."""
    names = ("id", "prompt_id", "judge", "iteration", "sample", "verdict", "failure", "forced",
             "finish_reason", "free_tokens")  # fmt: skip
    for values in read_columns(table, *names):
        yield Judgment(text="", token_ids=(), **dict(zip(names, values, strict=True)))
