"""The bar of a resumed fine-tuning counts only the steps of this process in its rate."""

from __future__ import annotations

import io
import re

from ste_jax.finetuning.step_bar import StepBar


def test_a_resumed_trainings_rate_is_that_of_its_new_steps() -> None:
    with StepBar("finetune 1", 10_000, file=io.StringIO(), mininterval=0) as bar:
        bar.start_t -= 10  # ten seconds ago
        for step in range(8_001, 8_021):
            bar.show({"step": step, "loss": 0.5})
        shown = str(bar)
    assert "8020/10000" in shown and "loss=0.500" in shown
    assert 1.0 < float(re.search(r"([\d.]+)step/s", shown)[1]) < 2.1  # type: ignore[index]
