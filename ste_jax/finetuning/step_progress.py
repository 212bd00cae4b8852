"""What is shown of a training while it goes on?"""

from __future__ import annotations

from collections import deque

from ste_jax.finetuning.training_state import Event
from ste_jax.system.display import Work
from ste_jax.system.progress_lines import Figure

_STEPS = 20
"""The rate of tokens is that of the last so many steps."""


class StepProgress:
    """Shows the steps of a training, one after another."""

    def __init__(self, training: Work) -> None:
        self._training = training
        self._last: deque[Event] = deque(maxlen=_STEPS)

    def show(self, event: Event) -> None:
        """Shows a step's event, as `finetune` logs it."""
        self._last.append(event)
        loss = event["loss"]
        rate = sum(each["tokens"] for each in self._last) / sum(e["seconds"] for e in self._last)
        found = [
            Figure("loss", loss, f"loss {loss:.3f}"),
            Figure("tokens_per_second", round(rate, 1), f"{rate:,.0f} tokens/s"),
        ]
        self._training.figures = lambda: found
        self._training.at(event["step"])
