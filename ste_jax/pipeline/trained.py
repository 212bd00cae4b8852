"""Is a phase's judge already trained, and where is it?

A judge is done if it has a loss curve and a checkpoint, and its mark holds today's fingerprint. A
judge of another fingerprint is moved aside, and comes back when its fingerprint does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ste_jax.checkpoints.card import CARD
from ste_jax.config.identity import Identity
from ste_jax.finetuning.training_state import has_published, steps_in_hand
from ste_jax.pipeline.context import Context, maker_of
from ste_jax.pipeline.intake import is_there, model_of
from ste_jax.pipeline.phases.phase import Phase, PhaseDirs
from ste_jax.run import marks
from ste_jax.run.changes import Changes, RecipeStep, counted
from ste_jax.run.layout import IterationDir
from ste_jax.system import files
from ste_jax.system.errors import WorkError


def training_step(context: Context, phase: Phase, dirs: PhaseDirs) -> RecipeStep:
    """The step that trains the judge of a phase, as messages call it."""
    index, parent = dirs.out.index, dirs.parent
    return RecipeStep(
        title=f"{phase.name} {index}",
        takes=("pair", f"{phase.chosen_by} {index}"),
        asks=maker_of(context.config, parent),
        model=f"the judge of iteration {parent.index}",
        inputs="what it learns from",
    )


@dataclass(frozen=True)
class TrainedJudge:
    """The judge of a phase: what it is to be made of, and its directory. Process 0 alone."""

    context: Context
    phase: Phase
    dirs: PhaseDirs
    made_under: Identity

    @property
    def step(self) -> RecipeStep:
        """The step that trains the judge, as messages call it."""
        return training_step(self.context, self.phase, self.dirs)

    def is_done(self) -> bool:
        """Whether the judge is trained; a judge that was trained elsewhere is moved here.

        Raises:
          WorkError: the judge was trained, and its checkpoint is damaged.
        """
        out = self.dirs.out
        _check_judge(out)
        if self._made_under(out) != self.made_under:
            self._take_over()
            _check_judge(out)
        self._made_under(out)  # a mark that is lost is made again
        done = marks.is_done(out.finetune_mark, self.made_under, outputs=(out.loss_curve,))
        return done and is_there(out)

    def foretell(self) -> str:
        """Say what a start would do with the judge, in a dry pass. Returns the directory of a
        judge that would be taken over; empty if none would."""
        out, changes, step = self.dirs.out, self.context.changes, self.step
        there, had = _found_under(out), is_there(out) and bool(out.loss_curve.exists())
        another = changes.follows_another(step)
        elsewhere = None if another or there == self.made_under else self._elsewhere()
        if there == self.made_under and not another and self._lost_checkpoint():
            changes.redone.add(step.title)
            changes.plan(step.title, "again", f"{self._trained()} {_LOST}")
        elif elsewhere is not None and had:
            changes.again(step, _TAKEN_OVER.format(elsewhere.root), there, self.made_under)
            changes.redone.discard(step.title)  # it is as it was made
            changes.others.discard(step.title)
        elif elsewhere is not None:
            changes.plan(step.title, "goes on", _TAKEN_OVER.format(elsewhere.root))
        elif had and another and _has_set_aside(self.dirs.here):
            what = f"{self._trained()} again, or comes back from what is set aside"
            changes.again(step, what, there, self.made_under)
        elif not had and _is_kept(out) and (there != self.made_under or another):
            changes.again(step, f"{self._trained()} again", there, self.made_under)
        elif not had and there == self.made_under and (taken := _in_hand(out)):
            changes.redone.add(step.title)
            what = f"the training goes on after {counted(taken, 'steps')}"
            changes.plan(step.title, "goes on", what)
        else:
            done = self._trained() if had else "the judge is trained"
            changes.foretell(step, done, there, self.made_under, had)
        return "" if elsewhere is None else str(elsewhere.root)

    def make_room(self) -> None:
        """Clear the directory of another judge, or of the rest of one whose checkpoint is gone."""
        out, changes = self.dirs.out, self.context.changes
        if self._made_under(out) != self.made_under:
            self._clear(f"{self._trained()} again")
        elif self._lost_checkpoint():
            self._make_room_for_the_lost()
        changes.redone.add(self.step.title)
        marks.mark(out.finetune_mark, self.made_under)

    def _lost_checkpoint(self) -> bool:
        """Whether a judge was there, or the best of a training in hand, whose checkpoint is gone
        now."""
        out = self.dirs.out
        return not is_there(out) and (out.loss_curve.exists() or has_published(out.train_state))

    def _make_room_for_the_lost(self) -> None:
        out, where = self.dirs.out, ""
        rest = [path for path in (out.evaluation, out.loss_curve) if path.exists()]
        if rest:
            home = marks.aside(out.finetune_mark, "").parent
            where = f"What else was there of it ({', '.join(path.name for path in rest)}) lies in "
            where += str(home)
        self.context.changes.say(self.step.title, f"{self._trained()} {_LOST}", where)
        # The training state first, whose result must not outlive the checkpoint; the loss curve
        # last, by which the next start sees, after a kill, that there is more to be moved.
        for path in (out.train_state, out.checkpoint):
            files.remove(path)
        marks.put_aside(rest, out.finetune_mark, "")  # of this fingerprint a whole judge is kept

    def _trained(self) -> str:
        """A sentence that the judge is trained, with the number of optimizer steps if known."""
        curve = self.dirs.out.loss_curve
        try:
            steps = files.read_json(curve).get("steps") if curve.exists() else None
        except WorkError:  # it is damaged, and is about to be moved
            steps = None
        if not curve.exists() and (taken := _in_hand(self.dirs.out)):
            return f"the training that had taken {counted(taken, 'steps')} is begun"
        if not steps:
            return "the judge is trained"
        return f"the judge of {counted(len(steps), 'steps')} is trained"

    def _made_under(self, there: IterationDir) -> Identity:
        """The fingerprint of what was trained there. A mark that is lost is made again of the
        checkpoint's card."""
        if not (found := marks.marked(there.finetune_mark)) and is_there(there):
            found = Identity(model_of(there))
            found = self.made_under if found == self.made_under else found
            marks.mark(there.finetune_mark, found)
        return found

    def _clear(self, what: str) -> None:
        """Move the judge that is there aside, also an unfinished training, and say so."""
        there, changes = self._made_under(self.dirs.out), self.context.changes
        again = partial(changes.again, self.step, what, there, self.made_under)
        _clear(self.dirs.here, self.dirs.out, there, again)

    def _elsewhere(self) -> IterationDir | None:
        """The directory of the same judge, trained before: under these knobs and then set aside, or
        as the last phase of the iteration where it is no longer the last, or the reverse."""
        here = self.dirs.here
        other = here if self.dirs.out != here else here.phase(self.phase.name)
        root = marks.aside(here.finetune_mark, self.made_under)
        aside = IterationDir(root, here.index, here.shards)
        for there in (other, aside):
            # what was set aside before it was done goes on where it was
            done = is_there(there) if there.loss_curve.exists() else there == aside
            if done and _is_kept(there) and _found_under(there) == self.made_under:
                return there
        return None

    def _take_over(self) -> None:
        """Move the judge that was trained elsewhere here."""
        if (there := self._elsewhere()) is None:
            return
        self._clear(_TAKEN_OVER.format(there.root))
        # The mark comes last: without it, what a kill has left half moved is made again.
        for place in there.finetuned[:-1]:
            if place.exists():
                files.move(place, self.dirs.out.root / place.name)
        marks.mark(self.dirs.out.finetune_mark, self.made_under)
        files.forget(there.finetune_mark)


_LOST = "again, since its checkpoint is gone"
_TAKEN_OVER = "the judge kept in {} is used again"


def forget_others(changes: Changes, here: IterationDir, stages: Sequence[str]) -> None:
    """Move aside the judges of phases that the iteration no longer has before its last; a dry pass
    only says so. Process 0 alone."""
    for place in here.phases.iterdir() if here.phases.exists() else ():
        other = here.phase(place.name)
        title = f"{place.name} {here.index}"
        what = "its judge is set aside, since finetune.stages has it no longer before the last"
        if place.name in stages[:-1]:
            continue
        if not changes.dry:
            _clear(here, other, _found_under(other), partial(changes.say, title, what))
            files.remove(place)
        elif is_there(other) and place.name not in stages:  # else it is taken over
            changes.plan(title, "aside", what, why=what, asks=True)


def _found_under(there: IterationDir) -> Identity:
    """The fingerprint of the judge that was trained there, by its mark or else by its card."""
    found = marks.marked(there.finetune_mark)
    return Identity(model_of(there)) if not found and is_there(there) else found


def _has_set_aside(here: IterationDir) -> bool:
    """Whether a judge of the iteration was set aside."""
    home = marks.aside(here.finetune_mark, "").parent
    return home.exists() and any(each.name.startswith("finetune-") for each in home.iterdir())


def _clear(
    here: IterationDir, out: IterationDir, made_under: Identity, announce: Callable[[str], None]
) -> None:
    if _is_kept(out):
        marks.put_aside(out.finetuned, here.finetune_mark, made_under, announce)
    for path in out.finetuned:
        files.forget(path)


def _is_kept(out: IterationDir) -> bool:
    """Whether what lies there is worth to be set aside: a judge, or a training in hand."""
    return bool(out.checkpoint.exists() or out.loss_curve.exists()) or _in_hand(out) > 0


def _in_hand(out: IterationDir) -> int:
    """How many steps a training that is not ended has taken."""
    states = out.train_state
    places = states.iterdir() if states.exists() else ()
    return max((steps_in_hand(place) for place in places), default=0)


def _check_judge(out: IterationDir) -> None:
    """Raises `WorkError` for a checkpoint that is damaged, whatever is to replace it."""
    begun = (out.checkpoint / CARD).exists() or out.loss_curve.exists()
    if out.checkpoint.exists() and begun and not is_there(out):
        raise WorkError(
            f"{out.checkpoint} is damaged: its card cannot be read; put a copy of it back, or move "
            "it away and run again: it is trained anew"
        )
