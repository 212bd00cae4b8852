"""How does what an iteration has chosen become its judge?

By the stages of `finetune.stages`, one after another: the first from the seed (or the previous
judge), each other from what the one before it gave. Every few steps the judge is measured on the
validation pairs, through the decoding engine; the best of these, or what the stage began with if
that was better, is the stage's result. The last stage's is the iteration's; the others' lie below
`stages/`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tqdm import tqdm

from ste_jax.checkpoints import checkpoint
from ste_jax.config.from_plain import to_dict
from ste_jax.errors import WorkError
from ste_jax.finetuning import packing
from ste_jax.finetuning.loop import finetune
from ste_jax.finetuning.meters import measured
from ste_jax.finetuning.objectives import Preference
from ste_jax.finetuning.packing import Example, Unit
from ste_jax.finetuning.phase_knobs import objective_of, stage_knobs, told
from ste_jax.finetuning.reference import reference_scores
from ste_jax.finetuning.step_bar import StepBar
from ste_jax.finetuning.training_state import handed_out
from ste_jax.model_io.open_model import Opened, open_model
from ste_jax.model_io.sources import resolve
from ste_jax.models.decoder import Decoder
from ste_jax.pipeline.annotate import (
    dpo_asks_sft,
    judge_fingerprint,
    judge_for_dpo,
    make_judge,
    validation_prompts,
)
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.curate import prefer
from ste_jax.pipeline.intake import answers_of, is_there, model_of
from ste_jax.pipeline.validate import Validation, Validator
from ste_jax.records import ReferenceScore, TrainingExample
from ste_jax.run import layout, marks
from ste_jax.run.layout import IterationDir, fingerprint
from ste_jax.run.tracking import Tracker
from ste_jax.stages import judge_card
from ste_jax.system import files, preemption
from ste_jax.tokenization.assistant_turn import turn_ids
from ste_jax.tokenization.tokenizer import NO_ARGUMENTS, Tokenizer

VERSION = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of an iteration's fine-tuning."""

    name: str
    """`sft` or `dpo`."""
    chosen: IterationDir
    """Where what the iteration has chosen lies."""
    out: IterationDir
    """Where its judge comes to lie: `chosen` itself, if it is the last."""
    parent: IterationDir
    """The judge that it begins with."""


def stages_of(context: Context, iteration: int) -> list[Stage]:
    """The stages of an iteration, in order."""
    knobs, here = context.config.finetune, context.run.iteration(iteration)
    parent = context.run.iteration(0 if knobs.start_from == "seed" else iteration - 1)
    stages = []
    for name, out in here.places_of(knobs.stages):
        stages.append(Stage(name=name, chosen=here, out=out, parent=parent))
        parent = out
    return stages


def finetune_iteration(context: Context, iteration: int) -> None:
    """Train iteration K's judge; a stage is done where its loss curve lies beside its checkpoint.
    Before DPO, the judge that SFT gave makes the judgments that DPO pairs."""
    stages = stages_of(context, iteration)
    for stage in stages:
        if stage.name == "dpo" and dpo_asks_sft(context.config):
            judge_for_dpo(context, iteration, stage.parent)
            prefer(context, iteration, stage.chosen.dpo_judgments)
        _finetune(context, stage)
    kept = {stage.out.root.name for stage in stages[:-1]}
    context.processes.from_first("old stages", lambda: _forget_others(stages[-1].chosen, kept))


def _forget_others(here: IterationDir, kept: set[str]) -> None:
    """Move aside the judges of stages that the iteration no longer has."""
    if here.stages.exists():
        for place in here.stages.iterdir():
            if place.name not in kept:
                _clear(here, here.stage(place.name))
                files.remove(place)


def _finetune(context: Context, stage: Stage) -> None:
    config, out, parent = context.config, stage.out, stage.parent
    judging = make_judge(context, parent, "validate", out.index)
    validation = Validation(judging, validation_prompts(context, judging))
    table = stage.chosen.preferences if stage.name == "dpo" else stage.chosen.training
    data = layout.row_ids([table])
    stage_told: list[Any] = [told(stage_knobs(config.finetune, stage.name))]
    if stage.name == "dpo":
        stage_told += [config.finetune.dpo.beta, config.finetune.dpo.nll_scale]
    print_ = fingerprint(
        "finetune" if stage.name == "sft" else f"finetune {stage.name}",
        VERSION,
        [
            *stage_told,
            judge_fingerprint(judging),
            [prompt.id for prompt in validation.prompts],
        ],
        model=answers_of(context, parent),
        inputs=data,
    )
    reference = _reference_print(context, stage, data)
    if not context.processes.from_first(
        f"begin {stage.name}", lambda: _is_wanted(stage, print_, reference)
    ):
        return
    # Where only the last can be the result, what it begins with need not be measured.
    may_stay = config.finetune.select == "best"
    start = validation.of_start(context, parent) if may_stay else None
    context.forget_model()
    opened = _open(context, parent)
    rows = list(table.rows())
    arguments = judging.role.template_arguments
    units: Sequence[Unit]
    if stage.name == "dpo":
        preferences = make_preferences(rows, opened.tokenizer, arguments)
        _check_letters(context, stage, rows, preferences)
        units = _with_reference(context, stage, preferences, opened, data)
    else:
        units = make_examples(rows, opened.tokenizer, arguments)
        _check_letters(context, stage, rows, units)
    # Now that nothing is left that would refuse it.
    context.processes.from_first(f"room {stage.name}", lambda: _make_room(stage, print_))
    _train(context, stage, opened, units, validation, start, print_, data)


def _open(context: Context, judge_dir: IterationDir) -> Opened:
    """A judge, as it is trained."""
    knobs = context.config.finetune
    return open_model(
        resolve(str(judge_dir.checkpoint)),
        knobs.mesh,
        dtype=knobs.dtype,
        param_dtype=knobs.param_dtype,
    )


def _is_wanted(stage: Stage, print_: str, reference: str) -> bool:
    """Whether the stage's judge is still to be made; where it is there, so is what it was held to,
    of the fingerprint `reference`. Process 0 alone.

    Raises:
      WorkError: it was made, and its checkpoint is damaged.
    """
    out = stage.out
    _check_judge(out)
    if _made_under(out) != print_:
        _take_over(stage, print_)
        _check_judge(out)
    if _made_under(out) != print_ or not out.loss_curve.exists():
        return True
    if stage.name == "dpo":
        table, mark = stage.chosen.reference, stage.chosen.reference_mark
        if (marks.aside(mark, reference) / table.directory.name).exists():
            marks.change_over(mark, [table.directory], reference)
        table.check()  # else nobody would read it again
    return not is_there(out)


def _check_judge(out: IterationDir) -> None:
    """Raises `WorkError` for a checkpoint that is damaged, whatever is to lie in its place."""
    begun = (out.checkpoint / checkpoint.CARD).exists() or out.loss_curve.exists()
    if out.checkpoint.exists() and begun and not is_there(out):
        raise WorkError(
            f"{out.checkpoint} is damaged: its card cannot be read; put a copy of it back, or move "
            "it away and run again: it is trained anew"
        )


def _made_under(there: IterationDir) -> str:
    """The fingerprint of what was trained there. A mark that is lost is made again of the
    checkpoint's card."""
    print_ = marks.marked(there.finetune_mark)
    if not print_ and is_there(there):
        print_ = model_of(there)
        marks.mark(there.finetune_mark, print_)
    return print_


def _make_room(stage: Stage, print_: str) -> None:
    """Nothing of another judge, or of one that is gone, lies where this one is trained."""
    out, mark = stage.out, stage.out.finetune_mark
    if _made_under(out) != print_:
        _clear(stage.chosen, out)
    elif out.loss_curve.exists() or (handed_out(out.train_state) and not is_there(out)):
        # the state first: what it ended with must not outlive the checkpoint
        for path in (out.train_state, out.loss_curve, out.checkpoint, out.evaluation):
            files.remove(path)
    marks.mark(mark, print_)


def _clear(here: IterationDir, out: IterationDir) -> None:
    """Move a judge aside, be it the best so far of a training that was not ended; of one that came
    to no checkpoint, nothing is kept."""
    if out.checkpoint.exists() or out.loss_curve.exists():
        marks.put_aside(out.finetuned, here.finetune_mark, _made_under(out))
    for path in out.finetuned:
        files.forget(path)


def _aside(here: IterationDir, print_: str) -> IterationDir:
    """Where an iteration's judge lies that was made under another fingerprint than today's."""
    return IterationDir(marks.aside(here.finetune_mark, print_), here.index, here.shards)


def _check_letters(
    context: Context, stage: Stage, rows: list[TrainingExample], units: Sequence[Unit]
) -> None:
    """Refuses to train where all that fits has one verdict.

    Raises:
      WorkError: names the knob.
    """
    knobs = stage_knobs(context.config.finetune, stage.name)
    letters = {row.id: row.label for row in rows}
    cut, _ = packing.cut_to_fit(units, knobs)
    too_long = {unit.id for unit in cut if unit.length > knobs.sequence_length}
    left = {letter for id, letter in letters.items() if id not in too_long}
    if len(left) == 1:
        where = "finetune.dpo." if stage.name == "dpo" else "finetune."
        raise WorkError(
            f"{stage.name}: {len(too_long)} of iteration {stage.out.index}'s {len(units)} "
            f"rows are longer than {where}sequence_length={knobs.sequence_length}, and all the "
            f"others have the verdict {left.pop()}; raise it"
        )


def _train(
    context: Context,
    stage: Stage,
    opened: Opened,
    units: Sequence[Unit],
    validation: Validation,
    start: dict[str, Any] | None,
    print_: str,
    data: str,
) -> None:
    config, out = context.config, stage.out
    knobs = stage_knobs(config.finetune, stage.name)
    validate = Validator(context, opened, validation)
    name = f"{out.index}-{stage.name}"
    tracker = Tracker(
        config.track,
        context.run.root,
        name,
        run=config.name,
        attempt=fingerprint("attempt", 1, str(context.run.root), inputs=print_),
        config=to_dict(config),
    )

    def save_model(model: Decoder, step: int, metrics: dict[str, Any]) -> None:
        checkpoint.save_checkpoint(
            out.checkpoint,
            model,
            tokenizer=opened.tokenizer,
            provenance={
                "run": config.name,
                "iteration": out.index,
                "stage": stage.name,
                "parent": model_of(stage.parent),
                "source": config.model,
                "fingerprint": print_,
                "judge": judge_card.to_dict(judge_card.of_config(config)),
                "training_rows": data,
                "examples": len(units),
                "step": step,
                "validation": metrics,
                "validated_as": validation.told(context),
            },
            barrier=context.processes.barrier,
        )

    fitting, _ = packing.cut_to_fit(units, knobs)
    steps = len(packing.plan(fitting, knobs, config.seed).steps)
    devices = list(opened.mesh.devices.flat)
    with StepBar(f"{stage.name} {out.index}", steps) as bar, tracker:

        def log(event: dict[str, Any]) -> None:
            found = {**event, **measured(event, event["seconds"], devices)}
            context.log("train_step", iteration=out.index, stage=stage.name, **found)
            if context.processes.first:
                tracker.step(found)
            bar.show(event)

        def validated(model: Decoder, step: int, release: Callable[[], None]) -> dict[str, Any]:
            found = validate(model, step, release)
            if context.processes.first:
                tracker.validation(step, found)
            return found

        result = finetune(
            model=opened.model,
            examples=units,
            knobs=knobs,
            seed=config.seed,
            mesh=opened.mesh,
            state_dir=out.train_state,
            validate=validated,
            save_model=save_model,
            log=log,
            stop_requested=preemption.requested,
            objective=objective_of(config.finetune, stage.name),
            start=start,
        )
    if result.best_step == 0 and start is not None:
        save_model(_open(context, stage.parent).model, 0, result.validations[0])
    curve = {
        "stage": stage.name,
        "examples": len(units),
        "steps": result.steps,
        "validations": result.validations,
        "best_step": result.best_step,
        "best_accuracy": result.best_accuracy,
        "too_long": list(result.dropped),
        "truncated": list(result.truncated),
        "without_target": list(result.unweighted),
    }
    context.processes.from_first("loss curve", lambda: files.write_json(out.loss_curve, curve))


def make_examples(
    rows: Sequence[TrainingExample],
    tokenizer: Tokenizer,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> list[Example]:
    """The ids of each prompt, made with the chat template's `arguments` as where the judge was
    asked, and the ids that were sampled; nothing is tokenized again.

    A judgment that was ended from outside (a forced verdict, a stop string) gets the end-of-turn
    token that the model did not come to print, so that the next judge learns to stop there. One
    from an endpoint has no ids: its text is encoded, with its thoughts as this model writes them.
    """
    prompts = tokenizer.prompt_ids_batch((row.messages for row in rows), arguments)
    return [
        Example(
            id=row.id,
            prompt_ids=prompt_ids,
            completion_ids=_ended(_ids(row, "chosen", tokenizer, arguments), tokenizer),
        )
        for row, prompt_ids in zip(rows, prompts, strict=True)
    ]


def make_preferences(
    rows: Sequence[TrainingExample],
    tokenizer: Tokenizer,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> list[Preference]:
    """Likewise of a correct and a failed judgment. A failed one that was cut off stays so: nothing
    is learnt of how it would have ended."""
    prompts = tokenizer.prompt_ids_batch((row.messages for row in rows), arguments)
    return [
        Preference(
            id=row.id,
            prompt_ids=prompt_ids,
            chosen_ids=_ended(_ids(row, "chosen", tokenizer, arguments), tokenizer),
            rejected_ids=_rejected_ids(row, tokenizer, arguments),
        )
        for row, prompt_ids in zip(rows, prompts, strict=True)
    ]


def _ids(
    row: TrainingExample,
    which: Literal["chosen", "rejected"],
    tokenizer: Tokenizer,
    arguments: Mapping[str, Any],
) -> tuple[int, ...]:
    if which == "chosen":
        text, ids = row.completion, row.completion_ids
    else:
        text, ids = row.rejected or "", row.rejected_ids or ()
    if ids:
        return tuple(ids)
    return tuple(turn_ids(tokenizer, text, tokenizer.opened_thoughts(row.messages, arguments)))


def _rejected_ids(
    row: TrainingExample, tokenizer: Tokenizer, arguments: Mapping[str, Any]
) -> tuple[int, ...]:
    ids = _ids(row, "rejected", tokenizer, arguments)
    return ids if row.rejected_cut_off else _ended(ids, tokenizer)


def _ended(ids: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    return ids if ids and ids[-1] in tokenizer.eos_ids else (*ids, tokenizer.end_of_turn_id)


def _take_over(stage: Stage, print_: str) -> None:
    """What the stage has made before, under these knobs or as the last of an iteration when it is
    no longer that, or the other way round, it need not make again."""
    other = stage.chosen if stage.out != stage.chosen else stage.chosen.stage(stage.name)
    aside = _aside(stage.chosen, print_)
    for there in (other, aside):
        # what was set aside before it was done goes on where it was
        done = there.loss_curve.exists() or there == aside
        if not (done and is_there(there)) or _made_under(there) != print_:
            continue
        _clear(stage.chosen, stage.out)
        # The mark comes last: without it, what a kill has left half moved is made again.
        for place in there.finetuned[:-1]:
            if place.exists():
                files.move(place, stage.out.root / place.name)
        marks.mark(stage.out.finetune_mark, print_)
        files.forget(there.finetune_mark)
        return


def _reference_print(context: Context, stage: Stage, data: str) -> str:
    """The fingerprint of what a stage's first model says of its pairs."""
    knobs = stage_knobs(context.config.finetune, stage.name)
    shape = [knobs.sequence_length, knobs.batch_rows, knobs.accumulate, knobs.dtype]
    return fingerprint(
        "reference", 1, [*shape, knobs.param_dtype], model=model_of(stage.parent), inputs=data
    )


def _with_reference(
    context: Context,
    stage: Stage,
    preferences: list[Preference],
    opened: Opened,
    data: str,
) -> list[Preference]:
    """The preferences with what the stage's first model says of them: asked once and kept, shard by
    shard. Those that no row holds stay without.

    Raises:
      Preempted: asked to stop; finished shards are kept.
    """
    knobs = stage_knobs(context.config.finetune, stage.name)
    table, mark = stage.chosen.reference, stage.chosen.reference_mark
    print_ = _reference_print(context, stage, data)

    def missing() -> list[int]:
        marks.change_over(mark, [table.directory], print_)
        return [shard for shard in range(table.shards) if not table.done(shard)]

    by_id = {each.id: each for each in preferences}
    shards = {
        shard: [by_id[row.id] for row in stage.chosen.preferences.read(shard)]
        for shard in range(table.shards)
    }
    todo = context.processes.from_first("reference", missing)
    known = {
        row.id: (row.chosen_logprob, row.rejected_logprob)
        for shard in shards
        if shard not in todo
        for row in table.read(shard)
    }
    title, total = f"reference {stage.out.index}", sum(len(shards[shard]) for shard in todo)
    with tqdm(total=total, desc=title, unit="pair", disable=None if total else True) as bar:
        for shard, scores in reference_scores(
            opened.model,
            shards,
            todo,
            knobs,
            opened.mesh,
            preemption.requested,
            bar.update,
        ):
            # Every process has them all: none need read what another has just written.
            known |= scores
            if context.processes.first:
                rows = (
                    ReferenceScore(id=id, chosen_logprob=chosen, rejected_logprob=rejected)
                    for id, (chosen, rejected) in scores.items()
                )
                table.write(shard, rows)
    context.processes.barrier(title)
    lacking = [e.id for e in preferences if e.length <= knobs.sequence_length and e.id not in known]
    if lacking:
        raise WorkError(
            f"{table.directory} lacks the score of {lacking[0]}; move it away and run again: it is "
            "made anew"
        )
    return [dataclasses.replace(each, reference=known.get(each.id)) for each in preferences]
