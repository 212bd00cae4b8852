"""What the fine-tuning in `small` comes to where nothing happens to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ste_jax.finetuning.loop import FinetuneResult
from tests.finetuning.small import Trained

STEPS = 10
"""Of the fine-tuning in `small`: states after 3, 4, 6, 8, 9 and 10, validations after 4, 8 and
10."""

Check = Callable[[FinetuneResult, Trained], None]


def check_like(want: FinetuneResult, wanted: Trained) -> Check:
    """Checks that everything is bit for bit as it is there."""

    def check(result: FinetuneResult, trained: Trained) -> None:
        assert result == want
        assert trained.kept is not None and wanted.kept is not None
        assert trained.kept[0] == wanted.kept[0]
        for path, value in wanted.kept[1].items():
            assert np.array_equal(trained.kept[1][path], value), path
        # Steps that were taken again were logged alike.
        assert all(without_seconds(e) == want.steps[e["step"] - 1] for e in trained.logged)
        home = next((trained.root / "state").iterdir())
        left = {path.name for path in home.iterdir()}
        assert left == {"result.json", "result.json.copy"}

    return check


def without_seconds(event: dict[str, Any]) -> dict[str, Any]:
    """An event of the log, which else is the same each time."""
    return {key: value for key, value in event.items() if key != "seconds"}
