"""How are a few columns of a table read without its texts?

Reports count rows far more often than they show them. Reading only the columns that are counted, a
batch at a time, keeps memory and time apart from how long the judgments are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ste_jax.errors import WorkError
from ste_jax.records import SCHEMA_VERSION, Judgment
from ste_jax.rundir import Table


def read_columns(table: Table[Any], *names: str) -> Iterator[tuple[Any, ...]]:
    """The named columns of all rows that are there, shard by shard; missing shards are passed over.

    Raises:
      WorkError: a shard is not a readable table of this version; names the file.
    """
    for shard in range(table.shards):
        path = table.path(shard)
        if not path.exists():
            continue
        try:
            with path.open("rb") as file:
                parquet = pq.ParquetFile(file)
                version = (parquet.schema_arrow.metadata or {}).get(b"schema_version", b"none")
                if version.decode() != str(SCHEMA_VERSION):
                    raise WorkError(
                        f"{path} has schema_version {version.decode()}, this version reads "
                        f"{SCHEMA_VERSION}; report with the version that made the run"
                    )
                for batch in parquet.iter_batches(columns=list(names)):
                    yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise WorkError(
                f"{path} is not a readable table ({error}); delete it and run again"
            ) from error


def read_verdicts(table: Table[Judgment]) -> Iterator[Judgment]:
    """Judgments with their texts and token ids left empty: enough to measure a judge by."""
    names = ("id", "prompt_id", "judge", "iteration", "sample", "verdict", "failure", "forced",
             "finish_reason", "free_tokens")  # fmt: skip
    for values in read_columns(table, *names):
        yield Judgment(text="", token_ids=(), **dict(zip(names, values, strict=True)))
