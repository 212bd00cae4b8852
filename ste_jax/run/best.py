"""Which model does a name mean, and which of a run's judges is its best?"""

from __future__ import annotations

from etils import epath

from ste_jax.checkpoints.card import is_checkpoint
from ste_jax.model_io.sources import Source, resolve
from ste_jax.run.layout import RunDir
from ste_jax.system import files
from ste_jax.system.errors import RequestError


def locate(source: str) -> Source:
    """The model that a name means; for a run, its best checkpoint.

    Raises:
      RequestError: the name means no model, or a run without a checkpoint.
    """
    found = resolve(source)
    if found.kind == "run":
        return resolve(str(best_checkpoint(epath.Path(found.path))))
    return found


def best_checkpoint(root: epath.Path) -> epath.Path:
    """The checkpoint of the iteration with the best validation accuracy; of equals, the latest.

    A run without validation pairs gives its latest iteration. The held-out pairs decide nothing.
    """
    best: tuple[float, int, epath.Path] | None = None
    for each in RunDir(root).iterations():
        curve = each.loss_curve
        if not is_checkpoint(each.checkpoint) or (each.index and not curve.exists()):
            continue  # nothing yet, or the best so far of an unfinished training
        accuracy = files.read_json(curve).get("best_accuracy") if curve.exists() else None
        candidate = (-1.0 if accuracy is None else float(accuracy), each.index, each.checkpoint)
        best = candidate if best is None else max(best, candidate)
    if best is None:
        raise RequestError(f"{root} holds no finished checkpoint yet; run `ste run` again")
    return best[2]
