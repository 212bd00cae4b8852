"""How far is a fine-tuning, on the terminal?"""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from ste_jax.finetuning.training_state import Event


class StepBar(tqdm):  # type: ignore[type-arg]
    """A progress bar of training steps. After a resumption the rate, and so the time left, is that
    of the new steps alone."""

    def __init__(self, desc: str, total: int, **options: Any) -> None:
        super().__init__(desc=desc, total=total, unit="step", **options)

    def show(self, event: Event) -> None:
        """Shows a step's event, as `finetune` logs it."""
        if not self.n:
            self.initial = event["step"] - 1
        self.n = event["step"]
        self.set_postfix(loss=f"{event['loss']:.3f}", refresh=True)
