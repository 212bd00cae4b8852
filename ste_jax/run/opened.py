"""How is a run read from Python: its tables, what was measured, and its best judge?

Nothing here writes or holds the run: it may be read while it goes on. A table that is not there yet
has no rows, and a shard of one is there whole or not at all."""

from __future__ import annotations

import os
from typing import Any

from etils import epath

from ste_jax.run.best import best_judge
from ste_jax.run.layout import RunDir
from ste_jax.system import files
from ste_jax.system.errors import RequestError


class Run(RunDir):
    """A run that was opened to be read: the tables of `RunDir`, and what came out."""

    @property
    def best(self) -> epath.Path:
        """The checkpoint of its best judge, by validation accuracy.

        Raises:
          RequestError: no judge is finished yet.
        """
        return best_judge(self.root).checkpoint

    def evaluation(self, iteration: int) -> dict[str, Any]:
        """What was measured of an iteration's judge: see `ste_jax.evaluation.metrics.measure`; the
        labelled sets are under `sets`.

        Raises:
          RequestError: it was not measured yet.
        """
        path = self.iteration(iteration).evaluation
        if not path.exists():
            raise RequestError(f"{path} is not there: the judge was not measured yet")
        found: dict[str, Any] = files.read_json(path)
        return found


def open_run(directory: str | os.PathLike[str]) -> Run:
    """Open a run's directory (local or `gs://`) to be read.

    Raises:
      RequestError: it is none.
    """
    run = Run(epath.Path(directory))
    run.read_manifest()
    return run
