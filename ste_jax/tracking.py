"""Where can somebody watch a training while it runs?

In TensorBoard's event files below the run (`tensorboard --logdir RUN/tensorboard`), a directory for
each stage of each iteration; and in Weights & Biases, if the config names a project there.
`metrics.jsonl` holds the same figures and more; nothing is read back from here.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from ste_jax.config import TrackKnobs
from ste_jax.errors import RequestError


def check_tracking(knobs: TrackKnobs) -> None:
    """Raises `RequestError` where what is asked for is not installed."""
    if knobs.wandb and importlib.util.find_spec("wandb") is None:
        raise RequestError(
            f"track.wandb={knobs.wandb} needs Weights & Biases: pip install wandb, or leave it "
            "empty"
        )


class Tracker:
    """Takes the figures of one stage's steps. Used as a context; only one process writes."""

    def __init__(
        self, knobs: TrackKnobs, root: epath.Path, run: str, name: str, config: Mapping[str, Any]
    ) -> None:
        """`root`, `run`: the run's directory and name; `name`: the stage, as `1-sft`."""
        self._knobs, self._root, self._run, self._name = knobs, root, run, name
        self._config = dict(config)
        self._board: Any = None
        self._wandb: Any = None

    def step(self, event: Mapping[str, Any]) -> None:
        """The figures of a step: its event's numbers under their names."""
        numbers = {
            key: float(value)
            for key, value in event.items()
            if key != "step" and isinstance(value, (int, float))
        }
        if self._knobs.tensorboard:
            board = self._opened_board(event["step"])
            for key, value in numbers.items():
                board.add_scalar(f"train/{key}", value, event["step"])
        if self._knobs.wandb:
            self._opened_wandb().log(numbers, step=event["step"])

    def validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """What the validation after `step` gave."""
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
        if self._knobs.tensorboard:
            board = self._opened_board(step)
            for key, value in numbers.items():
                board.add_scalar(f"validation/{key}", value, step)
            board.flush()
        if self._knobs.wandb:
            self._opened_wandb().log({f"validation/{k}": v for k, v in numbers.items()}, step=step)

    def _opened_board(self, step: int) -> Any:
        """The writer; what an earlier attempt wrote of this and later steps is void."""
        if self._board is None:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

            place = os.fspath(self._root / "tensorboard" / self._name)
            self._board = SummaryWriter(place, purge_step=step, filename_suffix=f".{step}")
        return self._board

    def _opened_wandb(self) -> Any:
        if self._wandb is None:
            # By name: it is no dependency of ours.
            self._wandb = importlib.import_module("wandb").init(
                project=self._knobs.wandb,
                name=f"{self._run}/{self._name}",
                id=f"{self._run}-{self._name}",
                resume="allow",
                config=self._config,
            )
        return self._wandb

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *error: object) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
