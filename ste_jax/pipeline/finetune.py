"""How is an iteration's judge trained on the rows that were chosen for it?

It is trained by the phases of `finetune.stages`, one after another: the first from the seed (or the
previous judge), each other from the judge of the phase before it. Every few optimizer steps the
judge is measured on the validation pairs, through the decoding engine; the best of these models, or
the one that the phase began with if that was better, is the phase's result. The last phase's judge
is the iteration's; those of the others are kept below `stages/`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etils import epath

from ste_jax.checkpoints.checkpoint import save_checkpoint
from ste_jax.config.from_plain import to_dict
from ste_jax.config.identity import Identity, fingerprint
from ste_jax.finetuning.batch_source import BatchSource
from ste_jax.finetuning.loop import Callbacks, FinetuneResult, finetune
from ste_jax.finetuning.meters import measured
from ste_jax.finetuning.step_progress import StepProgress
from ste_jax.model_io.open_model import Opened, open_model
from ste_jax.model_io.sources import resolve
from ste_jax.models.decoder import Decoder
from ste_jax.pipeline.annotate import (
    judge_fingerprint,
    make_judge,
    named_judge,
    validation_questions,
)
from ste_jax.pipeline.context import Context, shown_as
from ste_jax.pipeline.intake import answers_of, is_there, model_of
from ste_jax.pipeline.phases import phases_of
from ste_jax.pipeline.phases.phase import Phase, PhaseDirs
from ste_jax.pipeline.trained import TrainedJudge, forget_others, training_step
from ste_jax.pipeline.validate import FEW_PROMPTS, Validation, Validator
from ste_jax.run.layout import IterationDir
from ste_jax.run.tracking import Tracker
from ste_jax.stages import judge_card
from ste_jax.system import files, preemption, progress
from ste_jax.tasks import Question

VERSION = 2


def phases_in(context: Context, iteration: int) -> list[tuple[Phase, PhaseDirs]]:
    """The phases of an iteration, in order, each with its directories."""
    knobs, here = context.config.finetune, context.run.iteration(iteration)
    parent = context.run.iteration(0 if knobs.start_from == "seed" else iteration - 1)
    found = []
    for phase, (_, out) in zip(
        phases_of(context.config), here.places_of(knobs.stages), strict=True
    ):
        found.append((phase, PhaseDirs(here=here, out=out, parent=parent)))
        parent = out
    return found


def finetune_phase(context: Context, iteration: int, name: str) -> None:
    """Train the judge of one phase of iteration K, from that of the phase before it."""
    phase, places = next(each for each in phases_in(context, iteration) if each[0].name == name)
    changes, stages = context.changes, context.config.finetune.stages
    dirs = dataclasses.replace(places, parent=context.judge_in(places.parent))
    if changes.dry and not is_there(dirs.parent):
        changes.first(f"{phase.name} {iteration}", "all of it, for the first time")
    else:
        phase.prepare(context, dirs)
        _finetune(context, phase, dirs)
    if name == stages[-1]:
        here = context.run.iteration(iteration)
        context.processes.from_first("old stages", lambda: forget_others(changes, here, stages))


def _finetune(context: Context, phase: Phase, dirs: PhaseDirs) -> None:
    config, parent = context.config, dirs.parent
    judging = make_judge(context, parent, "validate", dirs.out.index)
    step = training_step(context, phase, dirs)
    unknown: list[Question] = []
    questions = context.read_for(step, lambda: validation_questions(context, judging), unknown)
    validation = Validation(judging, questions)
    data = context.input_ids([phase.table(dirs.here)], step)
    made_under = fingerprint(
        phase.step,
        VERSION,
        [
            *phase.identity(config),
            judge_fingerprint(judging),
            [question.id for question in validation.questions],
        ],
        model=answers_of(context, parent),
        inputs=data,
        # whose judge lies where follows from the phases that there are
        named={
            "finetune.stages": config.finetune.stages,
            **phase.named(config),
            **named_judge(config),
        },
    )
    trained = TrainedJudge(context, phase, dirs, made_under)
    if context.changes.dry:
        there = context.processes.from_first(f"foretell {phase.name}", trained.foretell)
        if there:
            out = dirs.out
            context.taken_over[out] = dataclasses.replace(out, root=epath.Path(there))
        return

    def done() -> bool:
        there = trained.is_done()
        if there:
            phase.check_done(context, dirs, data)
        return there

    if context.processes.from_first(f"begin {phase.name}", done):
        return
    # Where only the last model can be the result, the first need not be measured.
    may_stay = config.finetune.select == "best"
    few, first = len(validation.questions), dirs.out.index == 1 and context.processes.first
    if may_stay and first and 0 < few < FEW_PROMPTS:
        progress.warn(
            f"the best step is chosen by {few} validation prompts, almost by chance; more come "
            "with a larger select.train or select.validation_fraction"
        )
    start = validation.of_start(context, parent) if may_stay else None
    context.forget_model()
    opened = _open(context, parent)
    source = phase.source(context, dirs, data, opened, judging.role.template_arguments)
    # Only now, since nothing can refuse the work any more.
    context.processes.from_first(f"room {phase.name}", trained.make_room)
    training = _Training(context, phase, dirs, opened, source, validation, made_under, data)
    result = training.run(start)
    curve = training.curve(result)
    context.processes.from_first("loss curve", lambda: files.write_json(dirs.out.loss_curve, curve))


def _open(context: Context, judge_dir: IterationDir) -> Opened:
    """A judge, opened on the mesh and in the types in which it is trained."""
    knobs = context.config.finetune
    return open_model(
        resolve(str(judge_dir.checkpoint)),
        knobs.mesh,
        dtype=knobs.dtype,
        param_dtype=knobs.param_dtype,
    )


@dataclass(frozen=True)
class _Training:
    """The training of a phase, and the files that it writes."""

    context: Context
    phase: Phase
    dirs: PhaseDirs
    opened: Opened
    source: BatchSource
    validation: Validation
    made_under: Identity
    data: str

    def run(self, start: dict[str, Any] | None) -> FinetuneResult:
        """Train from the judge whose measures are `start`; the best model is kept in `dirs.out`."""
        context, out = self.context, self.dirs.out
        title = shown_as(context, out.index, self.phase.name)
        training = progress.work(title, self.source.steps, "steps")
        with training as shown, self._tracker() as tracker:
            result = finetune(
                model=self.opened.model,
                source=self.source,
                knobs=self.phase.training_knobs(context.config),
                seed=context.config.seed,
                mesh=self.opened.mesh,
                state_dir=out.train_state,
                callbacks=Callbacks(
                    validate=self._validate(tracker),
                    save_model=self._save_model,
                    log=self._log(tracker, StepProgress(shown)),
                    stop_requested=preemption.requested,
                ),
                start=start,
            )
        if result.best_step == 0 and start is not None:
            began_with = _open(context, self.dirs.parent).model
            self._save_model(began_with, 0, result.validations[0])
        return result

    def curve(self, result: FinetuneResult) -> dict[str, Any]:
        """What `finetune.json` holds."""
        return {
            "stage": self.phase.name,
            "examples": self.source.examples,
            "steps": result.steps,
            "validations": result.validations,
            "best_step": result.best_step,
            "best_accuracy": result.best_accuracy,
            "too_long": list(result.dropped),
            "truncated": list(result.truncated),
            "without_target": list(result.unweighted),
        }

    def _tracker(self) -> Tracker:
        config, root = self.context.config, self.context.run.root
        return Tracker(
            config.track,
            root,
            f"{self.dirs.out.index}-{self.phase.name}",
            run=config.name,
            attempt=fingerprint("attempt", 1, str(root), inputs=self.made_under),
            config=to_dict(config),
        )

    def _save_model(self, model: Decoder, step: int, metrics: dict[str, Any]) -> None:
        config, out = self.context.config, self.dirs.out
        save_checkpoint(
            out.checkpoint,
            model,
            tokenizer=self.opened.tokenizer,
            provenance={
                "run": config.name,
                "iteration": out.index,
                "stage": self.phase.name,
                "parent": model_of(self.dirs.parent),
                "source": config.model,
                "fingerprint": self.made_under,
                "judge": judge_card.to_dict(judge_card.of_config(config)),
                "training_rows": self.data,
                "examples": self.source.examples,
                "step": step,
                "validation": metrics,
                "validated_as": self.validation.identity(self.context),
            },
        )

    def _log(self, tracker: Tracker, shown: StepProgress) -> Callable[[dict[str, Any]], None]:
        context, devices = self.context, list(self.opened.mesh.devices.flat)

        def log(event: dict[str, Any]) -> None:
            found = {**event, **measured(event, event["seconds"], devices)}
            where = {"iteration": self.dirs.out.index, "stage": self.phase.name}
            context.log("train_step", **where, **found)
            if context.processes.first:
                tracker.step(found)
            shown.show(event)

        return log

    def _validate(
        self, tracker: Tracker
    ) -> Callable[[Decoder, int, Callable[[], None]], dict[str, Any]]:
        validate = Validator(self.context, self.opened, self.validation, self.made_under)

        def validated(model: Decoder, step: int, release: Callable[[], None]) -> dict[str, Any]:
            found = validate(model, step, release)
            if self.context.processes.first:
                tracker.validation(step, found)
            return found

        return validated
