"""Where can a run be watched while it goes on?

Figures go to TensorBoard's event files below the run (`tensorboard --logdir RUN/tensorboard`): a
directory for each phase of each iteration, whose steps are those of the optimizer, and `recipe`,
whose steps are the iterations. They also go to Weights & Biases, if the config names a project
there. `metrics.jsonl` and `evaluation.json` hold the same figures and more; nothing is read back
from here, and a failure here ends no work.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from ste_jax.config.schema import TrackKnobs
from ste_jax.system import files
from ste_jax.system.errors import RequestError


def check_tracking(knobs: TrackKnobs) -> None:
    """Raises `RequestError` where a package that the knobs need is not installed."""
    if knobs.wandb and importlib.util.find_spec("wandb") is None:
        raise RequestError(
            f"track.wandb={knobs.wandb} needs Weights & Biases: pip install wandb, or leave it "
            "empty"
        )


RECIPE = "recipe"
"""The name of the curve whose steps are the iterations."""
_FLUSH = 30.0


class Tracker:
    """A context that writes the figures of a phase's optimizer steps, or those of the iterations;
    only one process has one."""

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
        """`root` and `run` are the run's directory and name, `name` is the phase (`1-sft`) or
        `RECIPE`. `attempt` differs for the same phase under other knobs, or in another run of that
        name."""
        self._knobs, self._place = knobs, root / "tensorboard" / name
        self._begin = {
            "project": knobs.wandb,
            "name": f"{run}/{name}",
            "id": f"{run}-{name}-{attempt[:12]}",
            "resume": "allow",
            "config": dict(config),
        }
        self._events: _EventFile | None = None
        self._wandb: Any = None
        self._off = False

    def step(self, event: Mapping[str, Any]) -> None:
        """Writes the figures of an optimizer step: its event's numbers under their names."""
        step = int(event["step"])
        numbers = {key: value for key, value in _numbers(event).items() if key != "step"}
        self._write(step, "train", numbers, numbers, first=step)

    def validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes what the validation after an optimizer step gave."""
        numbers = _numbers(metrics)
        named = {f"validation/{key}": value for key, value in numbers.items()}
        # An earlier attempt may have written the step's own figures, which will not come again.
        self._write(step, "validation", numbers, named, first=step + 1, flush=True)

    def recipe(
        self, curve: Mapping[int, Mapping[str, float]], now: int, sets: Sequence[str]
    ) -> None:
        """Writes the figures of all iterations, in place of those written before. W&B, where what
        was written stays, gets those of iteration `now`. For each of `sets`, TensorBoard has a
        chart of `accuracy/SET` with its interval (Custom Scalars)."""

        def write() -> None:
            if self._knobs.tensorboard:
                self._events = self._events or _EventFile(self._place, 0)
                self._events.margins("accuracy", sets)
                for step, numbers in curve.items():
                    self._events.add(numbers, step)
            if self._knobs.wandb:
                self._log_wandb(dict(curve[now]), now)

        self._quietly(write)

    @property
    def recipe_written(self) -> bool:
        """Whether TensorBoard's files of the iterations are there."""
        return not self._knobs.tensorboard or self._place.exists()

    def _log_wandb(self, numbers: dict[str, float], step: int) -> None:
        # By name, since wandb is no dependency of ours.
        self._wandb = self._wandb or importlib.import_module("wandb").init(**self._begin)
        self._wandb.log(numbers, step=step)

    def _write(
        self,
        step: int,
        group: str,
        numbers: dict[str, float],
        named: dict[str, float],
        *,
        first: int,
        flush: bool = False,
    ) -> None:
        def write() -> None:
            if self._knobs.tensorboard:
                self._events = self._events or _EventFile(self._place, first)
                self._events.add({f"{group}/{key}": value for key, value in numbers.items()}, step)
                if flush:
                    self._events.flush()
            if self._knobs.wandb:
                self._log_wandb(named, step)

        self._quietly(write)

    def _quietly(self, work: Callable[[], None]) -> None:
        """Do some work. If it fails, warn once and do no such work any more."""
        if self._off:
            return
        try:
            work()
        except Exception as error:  # a full disk, a package that is not there, a server's failure
            self._off = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            warnings.warn(
                f"the work goes on without TensorBoard's files and W&B ({reason}); its figures "
                "are in metrics.jsonl",
                stacklevel=2,
            )

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *error: object) -> None:
        if self._events is not None:
            self._quietly(self._events.close)
        if self._wandb is not None:
            self._quietly(self._wandb.finish)


class _EventFile:
    """An event file. For an object store, which cannot append, it is a local file that is copied.

    Not tensorboardX's `SummaryWriter`: its thread dies of a full disk, and then the call that adds
    a figure waits for ever.
    """

    def __init__(self, place: epath.Path, first: int) -> None:
        """Makes what earlier files say of step `first` and later steps void."""
        from tensorboardX.event_file_writer import (  # type: ignore[import-untyped]
            EventsWriter,
        )
        from tensorboardX.proto.event_pb2 import (  # type: ignore[import-untyped]
            Event,
            SessionLog,
        )
        from tensorboardX.summary import (  # type: ignore[import-untyped]
            custom_scalars,
            scalar,
        )

        self._event, self._scalar, self._custom = Event, scalar, custom_scalars
        self._copies = place if files.is_remote(place) else None
        self._here = tempfile.TemporaryDirectory() if self._copies else None
        home = Path(self._here.name if self._here else os.fspath(place))
        home.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(os.fspath(home / "events"), filename_suffix=f".{first}")
        self._home, self._flushed = home, time.monotonic()
        start = SessionLog(status=SessionLog.START)
        self._append(Event(step=first, session_log=start))

    def _append(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Adds scalars by tag; they are visible within `_FLUSH` seconds."""
        for tag, value in numbers.items():
            self._append(self._event(step=step, summary=self._scalar(tag, value)))
        if time.monotonic() - self._flushed > _FLUSH:
            self.flush()

    def margins(self, group: str, names: Sequence[str]) -> None:
        """Have `GROUP/NAME` charted between `GROUP/NAME_low` and `GROUP/NAME_high`."""
        tags = {name: f"{group}/{name}" for name in names}
        charts = {
            name: ["Margin", [tag, f"{tag}_low", f"{tag}_high"]] for name, tag in tags.items()
        }
        self._append(self._event(step=0, summary=self._custom({group: charts})))

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
