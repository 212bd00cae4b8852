"""How does what an iteration has chosen become its judge?

By the stages of `finetune.stages`, one after another: the first from the seed (or the previous
judge), each other from what the one before it gave. Every few steps the judge is measured on the
validation pairs, through the decoding engine, and the best of these is the stage's result. The last
stage's is the iteration's; the others' lie below `stages/`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from tqdm import tqdm

from ste_jax import checkpoints, files, judge_card, preemption, rundir
from ste_jax.context import Context
from ste_jax.decoding.memory import bytes_per_device
from ste_jax.errors import WorkError
from ste_jax.finetuning import packing
from ste_jax.finetuning.loop import finetune
from ste_jax.finetuning.meters import measured
from ste_jax.finetuning.objectives import Preference
from ste_jax.finetuning.packing import Example, Unit
from ste_jax.finetuning.reference import reference_scores
from ste_jax.finetuning.stage import objective_of, stage_knobs, told
from ste_jax.finetuning.step_bar import StepBar
from ste_jax.generators.local import LocalGenerator
from ste_jax.models.decoder import Decoder
from ste_jax.opening import Opened, hand_over_model, open_generator, open_model
from ste_jax.records import Prompt, ReferenceScore, TrainingExample
from ste_jax.rundir import IterationDir, fingerprint
from ste_jax.sharding import make_mesh
from ste_jax.stages import judge
from ste_jax.steps.judging import judge_fingerprint, make_judge, validation_prompts
from ste_jax.steps.pool import answers_of, is_there, model_of
from ste_jax.strict import to_dict
from ste_jax.tokenizers import Tokenizer
from ste_jax.tracking import Tracker

VERSION = 1
ROOM = 1.2
"""Times what decoding keeps in memory must be free for it, since its programs need some, too."""


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
    """Train iteration K's judge; a stage is done where its loss curve lies beside its
    checkpoint."""
    stages = stages_of(context, iteration)
    for stage in stages:
        _finetune(context, stage)
    kept = {stage.out.root.name for stage in stages[:-1]}
    context.processes.from_first("old stages", lambda: _forget_others(stages[-1].chosen, kept))


def _forget_others(here: IterationDir, kept: set[str]) -> None:
    """Remove the judges of stages that the iteration no longer has."""
    if here.stages.exists():
        for place in here.stages.iterdir():
            if place.name not in kept:
                files.remove(place)


def _finetune(context: Context, stage: Stage) -> None:
    config, out, parent = context.config, stage.out, stage.parent
    judging = make_judge(context, parent, "validate", out.index)
    prompts = validation_prompts(context, judging)
    table = stage.chosen.preferences if stage.name == "dpo" else stage.chosen.training
    data = rundir.row_ids([table])
    stage_told: list[Any] = [told(stage_knobs(config.finetune, stage.name))]
    if stage.name == "dpo":
        stage_told += [config.finetune.dpo.beta, config.finetune.dpo.nll_scale]
    print_ = fingerprint(
        "finetune" if stage.name == "sft" else f"finetune {stage.name}",
        VERSION,
        [*stage_told, judge_fingerprint(judging), [prompt.id for prompt in prompts]],
        model=answers_of(context, parent),
        inputs=data,
    )
    mark = out.finetune_mark

    def stale() -> bool:
        if rundir.marked(mark) != print_:
            _take_over(stage, print_)
        begun = rundir.marked(mark) == print_
        lost = out.loss_curve.exists() and not is_there(out)
        if not begun or lost:
            # the state first: what it ended with must not outlive the checkpoint
            for path in (out.train_state, out.loss_curve, out.checkpoint, out.evaluation):
                files.remove(path)
            rundir.mark(mark, print_)
        return not out.loss_curve.exists()

    if not context.processes.from_first(f"begin {stage.name}", stale):
        return
    context.forget_model()
    opened = open_model(
        str(parent.checkpoint),
        config.finetune.mesh,
        dtype=config.finetune.dtype,
        param_dtype=config.finetune.param_dtype,
    )
    rows = list(table.rows())
    units: Sequence[Unit]
    if stage.name == "dpo":
        preferences = make_preferences(rows, opened.tokenizer)
        _check_letters(context, stage, rows, preferences)
        units = _with_reference(context, stage, preferences, opened, data)
    else:
        units = make_examples(rows, opened.tokenizer)
        _check_letters(context, stage, rows, units)
    validate = _Validator(context, opened, judging, prompts)
    _train(context, stage, opened, units, validate, print_, data)


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
    validate: _Validator,
    print_: str,
    data: str,
) -> None:
    config, out = context.config, stage.out
    knobs = stage_knobs(config.finetune, stage.name)
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
        checkpoints.save_checkpoint(
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
        )
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


def make_examples(rows: Sequence[TrainingExample], tokenizer: Tokenizer) -> list[Example]:
    """The ids of each prompt and the ids that were sampled; nothing is tokenized again.

    A judgment that was ended from outside (a forced verdict, a stop string) gets the end-of-turn
    token that the model did not come to print, so that the next judge learns to stop there. One
    from an endpoint has no ids: its text is encoded.
    """
    prompts = tokenizer.prompt_ids_batch(row.messages for row in rows)
    return [
        Example(
            id=row.id,
            prompt_ids=prompt_ids,
            completion_ids=_ended(_ids(row.completion, row.completion_ids, tokenizer), tokenizer),
        )
        for row, prompt_ids in zip(rows, prompts, strict=True)
    ]


def make_preferences(rows: Sequence[TrainingExample], tokenizer: Tokenizer) -> list[Preference]:
    """Likewise of a correct and a failed judgment. A failed one that was cut off stays so: nothing
    is learnt of how it would have ended."""
    prompts = tokenizer.prompt_ids_batch(row.messages for row in rows)
    return [
        Preference(
            id=row.id,
            prompt_ids=prompt_ids,
            chosen_ids=_ended(_ids(row.completion, row.completion_ids, tokenizer), tokenizer),
            rejected_ids=_rejected_ids(row, tokenizer),
        )
        for row, prompt_ids in zip(rows, prompts, strict=True)
    ]


def _ids(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    return tuple(ids) or tuple(tokenizer.encode(text, continues=True))


def _rejected_ids(row: TrainingExample, tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = _ids(row.rejected or "", row.rejected_ids or (), tokenizer)
    return ids if row.rejected_cut_off else _ended(ids, tokenizer)


def _ended(ids: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    return ids if ids and ids[-1] in tokenizer.eos_ids else ids + tokenizer.eos_ids[:1]


def _take_over(stage: Stage, print_: str) -> None:
    """What the stage has made as the last of an iteration, when it is no longer that, or the other
    way round, it need not make again. Nothing is moved within an object store."""
    there = stage.chosen if stage.out != stage.chosen else stage.chosen.stage(stage.name)
    done = there.loss_curve.exists() and is_there(there)
    if files.is_remote(there.root) or rundir.marked(there.finetune_mark) != print_ or not done:
        return
    made = [place for place in there.finetuned if place.exists()]
    for place in stage.out.finetuned:
        files.remove(place)
    stage.out.root.mkdir(parents=True, exist_ok=True)
    # The mark comes last: without it, what a kill has left half moved is made again.
    for place in made:
        place.rename(stage.out.root / place.name)


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
    table, knobs = stage.chosen.reference, stage_knobs(context.config.finetune, stage.name)
    mark = stage.chosen.reference_mark
    shape = [knobs.sequence_length, knobs.batch_rows, knobs.accumulate, knobs.dtype]
    print_ = fingerprint(
        "reference", 1, [*shape, knobs.param_dtype], model=model_of(stage.parent), inputs=data
    )

    def missing() -> list[int]:
        if rundir.marked(mark) != print_:
            table.remove()
            rundir.mark(mark, print_)
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
            f"{table.directory} lacks the score of {lacking[0]}; remove it and run again"
        )
    return [dataclasses.replace(each, reference=known.get(each.id)) for each in preferences]


class _Validator:
    """Measures a judge in training on the validation pairs: greedy, both orders, forced if the run
    forces. Each process judges its share of the prompts with its own copy of the weights."""

    def __init__(
        self, context: Context, opened: Opened, judging: judge.Judge, prompts: list[Prompt]
    ) -> None:
        self._context, self._opened = context, opened
        self._judging, self._prompts = judging, prompts

    def __call__(self, model: Decoder, step: int, release: Callable[[], None]) -> dict[str, Any]:
        context, judging = self._context, self._judging
        processes = context.processes
        mine = self._prompts[processes.index :: processes.count]
        generator = self._generator(model, release)
        counts = [0, 0, 0]
        note = context.meter("validate", judging.iteration, generator)
        for prompt, (judgment,) in judge.judge_all(
            mine, generator, judging.greedy(), 1, in_flight=context.in_flight()
        ):
            counts[0] += 1
            counts[1] += judgment.verdict == prompt.label
            counts[2] += judgment.failure is None
        note(len(mine))
        every = processes.gather(f"validate {step}", counts)
        total, right, parsed = (sum(each) for each in zip(*every, strict=True))
        if not total:
            return {"n_prompts": 0, "accuracy": None}
        return {"n_prompts": total, "accuracy": right / total, "parsed": parsed / total}

    def _generator(self, model: Decoder, release: Callable[[], None]) -> LocalGenerator:
        """The weights in training, on this process's own devices in the decoding type."""
        context, tokenizer = self._context, self._opened.tokenizer
        knobs = context.config.decoding
        mesh = make_mesh(knobs.mesh, jax.local_devices())
        if self._in_memory(model):
            local, received = hand_over_model(model, mesh, knobs.dtype)
            context.log("handed_over", bytes_received=received)
            return LocalGenerator(local, tokenizer, knobs, mesh)
        # A name that is swept where a kill leaves it.
        place = context.run.root / "validated.partial-weights"
        checkpoints.save_checkpoint(
            place, model, tokenizer=tokenizer, provenance={}, barrier=context.processes.barrier
        )
        release()
        generator = open_generator(str(place), knobs)
        context.processes.barrier("validated: read")
        context.processes.from_first("validated: removed", lambda: files.remove(place))
        context.log("handed_over", bytes_received=None)
        return generator

    def _in_memory(self, model: Decoder) -> bool:
        """Whether the weights are handed over beside the training state. All processes agree."""
        config = self._context.config
        if config.finetune.handover != "auto":
            return config.finetune.handover == "memory"
        if config.finetune.lora.rank:
            return True
        mesh = make_mesh(config.decoding.mesh, jax.local_devices())
        needed = ROOM * bytes_per_device(model.config, config.decoding, mesh)
        left = map(_free_bytes, jax.local_devices())
        fits = all(needed <= free for free in left if free is not None)
        return all(self._context.processes.gather("handover", fits))


def _free_bytes(device: jax.Device) -> int | None:
    """What a device has left; None where it does not tell."""
    told = device.memory_stats() or {}
    if "bytes_limit" not in told or "bytes_in_use" not in told:
        return None
    return int(told["bytes_limit"]) - int(told["bytes_in_use"])
