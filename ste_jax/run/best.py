"""Which model does a name mean, and which of a run's judges is its best?"""

from __future__ import annotations

from etils import epath

from ste_jax.checkpoints.checkpoint import is_checkpoint
from ste_jax.errors import RequestError
from ste_jax.model_io.sources import Source, resolve
from ste_jax.run.layout import RunDir
from ste_jax.system import files


def locate(source: str) -> Source:
    """What is there under that name; for a run, its best checkpoint.

    Raises:
      RequestError: nothing that is a model, or a run without a checkpoint.
    """
    found = resolve(source)
    if found.kind == "run":
        return resolve(str(best_checkpoint(epath.Path(found.path))))
    return found


def best_checkpoint(root: epath.Path) -> epath.Path:
    """The checkpoint of the iteration with the best validation accuracy; of equals, the latest.

    A run without validation pairs gives its latest iteration. The held-out pairs have no say.
    """
    best: tuple[float, int, epath.Path] | None = None
    for each in RunDir(root).iterations():
        curve = each.loss_curve
        if not is_checkpoint(each.checkpoint) or (each.index and not curve.exists()):
            continue  # nothing yet, or the best so far of a training in hand
        accuracy = files.read_json(curve).get("best_accuracy") if curve.exists() else None
        candidate = (-1.0 if accuracy is None else float(accuracy), each.index, each.checkpoint)
        best = candidate if best is None else max(best, candidate)
    if best is None:
        raise RequestError(f"{root} holds no finished checkpoint yet; run `ste run` again")
    return best[2]
