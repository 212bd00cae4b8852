"""Where can somebody watch a training while it runs?

In TensorBoard's event files below the run (`tensorboard --logdir RUN/tensorboard`), a directory for
each stage of each iteration; and in Weights & Biases, if the config names a project there.
`metrics.jsonl` holds the same figures and more; nothing is read back from here, and what goes wrong
here ends no training.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from ste_jax.config.schema import TrackKnobs
from ste_jax.errors import RequestError
from ste_jax.system import files


def check_tracking(knobs: TrackKnobs) -> None:
    """Raises `RequestError` where what is asked for is not installed."""
    if knobs.wandb and importlib.util.find_spec("wandb") is None:
        raise RequestError(
            f"track.wandb={knobs.wandb} needs Weights & Biases: pip install wandb, or leave it "
            "empty"
        )


_FLUSH = 30.0


class Tracker:
    """Takes the figures of one stage's steps. Used as a context; only one process writes."""

    def __init__(
        self,
        knobs: TrackKnobs,
        root: epath.Path,
        name: str,
        *,
        run: str,
        attempt: str,
        config: Mapping[str, Any],
    ) -> None:
        """`root`, `run`: the run's directory and name; `name`: the stage, as `1-sft`; `attempt`
        tells the same stage under other knobs, and in other runs of that name, apart."""
        self._knobs, self._place = knobs, root / "tensorboard" / name
        self._begin = {
            "project": knobs.wandb,
            "name": f"{run}/{name}",
            "id": f"{run}-{name}-{attempt[:12]}",
            "resume": "allow",
            "config": dict(config),
        }
        self._board: _Board | None = None
        self._wandb: Any = None
        self._off = False

    def step(self, event: Mapping[str, Any]) -> None:
        """The figures of a step: its event's numbers under their names."""
        step = int(event["step"])
        numbers = {key: value for key, value in _numbers(event).items() if key != "step"}
        self._tell(step, "train", numbers, numbers, first=step)

    def validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """What the validation after `step` gave."""
        numbers = _numbers(metrics)
        named = {f"validation/{key}": value for key, value in numbers.items()}
        # The step itself may have been told by an earlier attempt, and will not be told again.
        self._tell(step, "validation", numbers, named, first=step + 1, flush=True)

    def _tell(
        self,
        step: int,
        group: str,
        numbers: dict[str, float],
        named: dict[str, float],
        *,
        first: int,
        flush: bool = False,
    ) -> None:
        def tell() -> None:
            if self._knobs.tensorboard:
                self._board = self._board or _Board(self._place, first)
                self._board.add({f"{group}/{key}": value for key, value in numbers.items()}, step)
                if flush:
                    self._board.flush()
            if self._knobs.wandb:
                # By name: it is no dependency of ours.
                self._wandb = self._wandb or importlib.import_module("wandb").init(**self._begin)
                self._wandb.log(named, step=step)

        self._quietly(tell)

    def _quietly(self, work: Callable[[], None]) -> None:
        """What fails is told once, and nothing more is tried."""
        if self._off:
            return
        try:
            work()
        except Exception as error:  # a full disk, a package that is not there, somebody's server
            self._off = True
            told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            warnings.warn(
                f"the training goes on without TensorBoard's files and W&B ({told}); its figures "
                "are in metrics.jsonl",
                stacklevel=2,
            )

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *error: object) -> None:
        if self._board is not None:
            self._quietly(self._board.close)
        if self._wandb is not None:
            self._quietly(self._wandb.finish)


class _Board:
    """An event file. In an object store, which cannot append, one here that is copied there."""

    def __init__(self, place: epath.Path, first: int) -> None:
        """What earlier files say of step `first` and later ones is void."""
        from tensorboardX.event_file_writer import (  # type: ignore[import-untyped]
            EventsWriter,
        )
        from tensorboardX.proto.event_pb2 import (  # type: ignore[import-untyped]
            Event,
            SessionLog,
        )
        from tensorboardX.summary import scalar  # type: ignore[import-untyped]

        self._event, self._scalar = Event, scalar
        self._copies = place if files.is_remote(place) else None
        self._here = tempfile.TemporaryDirectory() if self._copies else None
        home = Path(self._here.name if self._here else os.fspath(place))
        home.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(os.fspath(home / "events"), filename_suffix=f".{first}")
        self._home, self._flushed = home, time.monotonic()
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=first, session_log=start))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Scalars by tag; visible within `_FLUSH` seconds."""
        for tag, value in numbers.items():
            self._write(self._event(step=step, summary=self._scalar(tag, value)))
        if time.monotonic() - self._flushed > _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Make what was added visible."""
        self._flushed = time.monotonic()
        self._writer.flush()
        if self._copies is not None:
            self._copies.mkdir(parents=True, exist_ok=True)
            for path in self._home.iterdir():
                files.write_whole(self._copies / path.name, path.read_bytes())

    def close(self) -> None:
        """Write what is left."""
        self.flush()
        self._writer.close()
        if self._here is not None:
            self._here.cleanup()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if isinstance(value, (int, float))}
