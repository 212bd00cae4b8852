"""Which model does a name mean, and which of a run's judges is its best?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from etils import epath

from ste_jax.checkpoints.card import is_checkpoint
from ste_jax.model_io.sources import Source, resolve
from ste_jax.run.changes import counted
from ste_jax.run.layout import IterationDir, RunDir
from ste_jax.run.marks import SET_ASIDE
from ste_jax.system import files, progress
from ste_jax.system.errors import RequestError


def locate(source: str) -> Source:
    """The model that a name means; for a run, its best checkpoint, with the iteration.

    Raises:
      RequestError: the name means no model, or a run without a checkpoint.
    """
    return _located(source)[0]


def locate_and_say(source: str) -> Source:
    """The model that a name means, as `locate` finds it. Of a run, a line says which judge that is;
    it is a warning where a later judge is missing. Raises as `locate`."""
    found, best = _located(source)
    if best is not None:
        (progress.warn if best.missing else progress.note)(best.line)
    return found


def _located(source: str) -> tuple[Source, BestJudge | None]:
    found = resolve(source)
    if found.kind != "run":
        return found, None
    best = best_judge(epath.Path(found.path))
    return dataclasses.replace(resolve(str(best.checkpoint)), iteration=best.iteration), best


@dataclass(frozen=True, kw_only=True)
class BestJudge:
    """The judge that a run's name means."""

    root: epath.Path
    """The run's directory."""
    iteration: int
    """0 is the seed."""
    checkpoint: epath.Path
    finished: Sequence[int]
    """The iterations that have a judge."""
    missing: Sequence[int]
    """The iterations of the run's config that have none; of these, one may be set aside."""
    set_aside: int
    """How many judges of the missing iterations are set aside."""

    @property
    def line(self) -> str:
        """A line on which judge it is, and why it is not a later one."""
        seed = ", the seed" if not self.iteration else ""
        line = f"the judge of {self.root} is that of iteration {self.iteration}{seed}"
        if self.iteration < max(self.finished):
            line += f", the best of {len(self.finished)} by validation accuracy"
        if not self.missing:
            return line
        word, has = ("iterations", "have") if len(self.missing) > 1 else ("iteration", "has")
        numbers = " and ".join(map(str, self.missing))
        line += f": {word} {numbers} {has} no finished judge"
        if self.set_aside:
            line += f"; {counted(self.set_aside, 'judges')} {_is(self.set_aside)} set aside"
        return line


def best_judge(root: epath.Path) -> BestJudge:
    """The judge of the iteration with the best validation accuracy; of equals, the latest.

    A run without validation pairs gives its latest iteration. The held-out pairs decide nothing.

    Raises:
      RequestError: this is no run, or it has no checkpoint yet.
    """
    run, accuracies = RunDir(root), dict[int, float]()
    for each in run.iterations():
        if _is_finished(each):
            curve = files.read_json(each.loss_curve) if each.loss_curve.exists() else {}
            accuracy = curve.get("best_accuracy")
            accuracies[each.index] = -1.0 if accuracy is None else float(accuracy)
    if not accuracies:
        raise RequestError(f"{root} holds no finished checkpoint yet; run `ste run` again")
    best = max(accuracies, key=lambda index: (accuracies[index], index))
    wanted = range(1, int(run.read_manifest()["iterations"]) + 1)
    missing = [index for index in wanted if index not in accuracies]
    return BestJudge(
        root=root,
        iteration=best,
        checkpoint=run.iteration(best).checkpoint,
        finished=list(accuracies),
        missing=missing,
        set_aside=sum(_set_aside(run.iteration(index)) for index in missing),
    )


def _is_finished(here: IterationDir) -> bool:
    """Whether a judge is there, and not the best so far of an unfinished training."""
    return is_checkpoint(here.checkpoint) and (not here.index or bool(here.loss_curve.exists()))


def _set_aside(here: IterationDir) -> int:
    """How many judges of an iteration are set aside."""
    home = here.root / SET_ASIDE
    places = home.iterdir() if home.exists() else ()
    return sum(_is_finished(IterationDir(place, here.index, here.shards)) for place in places)


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
