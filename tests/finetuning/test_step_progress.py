"""What is shown of a training: its newest loss, and tokens per second of the last steps."""

from __future__ import annotations

from ste_jax.finetuning.step_progress import StepProgress
from ste_jax.system.display import Work
from ste_jax.system.progress_lines import ended, plain


def test_a_resumed_training() -> None:
    training = Work("sft 1 of 3", 10_000, "steps")
    shown = StepProgress(training)
    for step in range(8_001, 8_101):
        shown.show({"step": step, "loss": 1 / step, "tokens": step, "seconds": 2.0})
    state = training.state(200.0)
    assert plain(state).startswith("sft 1 of 3: 8,100 of 10,000 steps (81%), 0.50/s, loss 0.000, ")
    rate = sum(range(8_081, 8_101)) / 40
    assert [figure.text for figure in state.figures][1] == f"{rate:,.0f} tokens/s"
    assert ended(state, training.began_with).startswith("sft 1 of 3: 100 steps in 3:20, 0.50/s, ")
