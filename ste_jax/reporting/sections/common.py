"""What do several sections of the report say in the same way?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ste_jax.reporting.page import Safe, table
from ste_jax.reporting.tables import cells

NOT_YET = "Not yet: the run has not come this far."


def judge_name(index: int) -> str:
    """The report's name for an iteration's judge."""
    return "seed" if index == 0 else f"iteration {index}"


def across(rows: Sequence[dict[str, Any]]) -> Safe:
    """A table with a column for each row: for few rows of many values."""
    header, body = cells(rows)
    first, *others = [list(line) for line in zip(header, *body, strict=True)]
    return table(first, others)
