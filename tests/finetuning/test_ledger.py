"""What was measured is written down, and the best of it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from etils import epath

from ste_jax.finetuning import loop
from ste_jax.finetuning.training_state import Ledger, LiveState
from ste_jax.models.decoder import Decoder
from tests.finetuning.small import small_model


class Held(LiveState):
    """A step's model, as far as a validation needs one."""

    def __init__(self, step: int) -> None:
        self.curve = [{}] * step

    def model(self) -> Decoder:
        return small_model()

    def restore(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ((0.6, 0.5, 0.4), [4]),
        ((0.5, 0.5, 0.5), [4, 8, 10]),
        ((0.5, 0.6, 0.6), [4, 8, 10]),
        ((0.5, 0.4, 0.5), [4, 10]),
        ((None, None, None), [4, 8, 10]),
        ((0.0, None, None), [4]),
    ],
)
def test_the_best_model_is_kept_and_of_equals_the_latest(
    accuracies: tuple[float | None, ...], kept: list[int], tmp_path: Path
) -> None:
    ledger = Ledger(epath.Path(tmp_path / "ledger.json"))
    saved: list[int] = []
    for step, accuracy in zip((4, 8, 10), accuracies, strict=True):
        assert loop.validate_step(
            ledger,
            Held(step),
            loop.Callbacks(
                validate=lambda model, step, release, a=accuracy: {"accuracy": a},  # type: ignore[misc]
                save_model=lambda model, step, metrics: saved.append(step),
                log=lambda event: None,
                stop_requested=lambda: False,
            ),
        )
    assert saved == kept
    assert ledger.best(10)["step"] == kept[-1]
    again = Ledger(epath.Path(tmp_path / "ledger.json"))
    assert again.validations(10) == ledger.validations(10)
