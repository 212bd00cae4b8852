"""How are the events of a run written down, and read again?"""

from __future__ import annotations

import atexit
import json
import time
from typing import Any

from etils import epath

from ste_jax.system import files
from ste_jax.system.errors import WorkError


class MetricsLog:
    """A process's log of events, one JSON line each. That of process 0 is `metrics.jsonl`.

    An object store takes only whole files, and few writes a second: there the events of optimizer
    steps are written together, some seconds later.
    """

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        self._remote = files.is_remote(path)
        self._text = path.read_text() if self._remote and path.exists() else ""
        self._pending, self._written = False, 0.0
        if self._remote:
            atexit.register(self._put)
        elif path.exists():
            self._end_torn_line()

    def _end_torn_line(self) -> None:
        """End the last line if a kill has cut it off, so that the next event starts a new line."""
        files.about_to_change(self._path)
        data = self._path.read_bytes()
        if data and not data.endswith(b"\n"):
            with self._path.open("a") as file:
                file.write("\n")

    def __call__(self, event: str, **values: Any) -> None:
        """Append one event; `time` is Unix seconds.

        Raises:
          WorkError: the file cannot be written.
        """
        files.about_to_change(self._path)
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
        try:
            if self._remote:
                self._text += line + "\n"
                self._pending = True
                if event != "train_step" or time.monotonic() > self._written + _TOGETHER_S:
                    self._put()
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            raise WorkError(f"could not append to {self._path}: {error.strerror}") from error

    def _put(self) -> None:
        if self._pending:
            self._path.write_text(self._text)
            self._pending, self._written = False, time.monotonic()


_TOGETHER_S = 15.0


def read_metrics(root: epath.Path) -> list[dict[str, Any]]:
    """The events of all processes of the run at `root`; a line cut off by a kill is passed over."""
    events = []
    for path in sorted(root.glob("metrics*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
    return events
