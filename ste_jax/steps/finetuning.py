"""How does an iteration's training set become its judge?

From the seed (or the previous judge) on the kept judgments; every few steps the judge is measured
on the validation pairs, through the decoding engine, and the best of these is the iteration's
result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ste_jax import checkpoints, files, judge_card, preemption, rundir
from ste_jax.context import Context
from ste_jax.errors import WorkError
from ste_jax.finetuning import packing
from ste_jax.finetuning.loop import finetune
from ste_jax.finetuning.packing import Example
from ste_jax.finetuning.step_bar import StepBar
from ste_jax.generators.local import LocalGenerator
from ste_jax.models.decoder import Decoder
from ste_jax.opening import Opened, hand_over_model, open_model
from ste_jax.records import Prompt, TrainingExample
from ste_jax.rundir import IterationDir, fingerprint
from ste_jax.sharding import make_mesh
from ste_jax.stages import judge
from ste_jax.steps.judging import judge_fingerprint, make_judge, validation_prompts
from ste_jax.steps.pool import answers_of, is_there, model_of
from ste_jax.strict import to_dict
from ste_jax.tokenizers import Tokenizer

VERSION = 1


def finetune_iteration(context: Context, iteration: int) -> None:
    """Train iteration K's judge; done where its loss curve lies beside its checkpoint."""
    config, here = context.config, context.run.iteration(iteration)
    parent = context.run.iteration(0 if config.finetune.start_from == "seed" else iteration - 1)
    judging = make_judge(context, parent, "validate", iteration)
    prompts = validation_prompts(context, judging)
    data = rundir.row_ids([here.training])
    knobs = to_dict(config.finetune)
    del knobs["mesh"], knobs["save_every"]  # where it ran and what it kept is not what it is
    print_ = fingerprint(
        "finetune",
        VERSION,
        [knobs, judge_fingerprint(judging), [prompt.id for prompt in prompts]],
        model=answers_of(context, parent),
        inputs=data,
    )
    mark = here.root / "finetune.mark.json"

    def stale() -> bool:
        begun = rundir.marked(mark) == print_
        lost = here.loss_curve.exists() and not is_there(here)
        if not begun or lost:
            # the state first: what it ended with must not outlive the checkpoint
            for path in (here.train_state, here.loss_curve, here.checkpoint, here.evaluation):
                files.remove(path)
            rundir.mark(mark, print_)
        return not here.loss_curve.exists()

    if not context.processes.from_first("begin finetune", stale):
        return
    context.forget_model()
    opened = open_model(
        str(parent.checkpoint),
        config.finetune.mesh,
        dtype=config.finetune.dtype,
        param_dtype=config.finetune.param_dtype,
    )
    _train(context, here, parent, opened, judging, prompts, print_, data)


def _train(
    context: Context,
    here: IterationDir,
    parent: IterationDir,
    opened: Opened,
    judging: judge.Judge,
    prompts: list[Prompt],
    print_: str,
    data: str,
) -> None:
    knobs = context.config.finetune
    rows = list(here.training.rows())
    letters = {row.id: row.label for row in rows}
    examples = make_examples(rows, opened.tokenizer)
    plan = packing.plan(examples, knobs, context.config.seed)
    left = {letter for id, letter in letters.items() if id not in plan.too_long}
    if len(left) == 1:
        raise WorkError(
            f"finetune: {len(plan.too_long)} of iteration {here.index}'s {len(examples)} rows are "
            f"longer than finetune.sequence_length={knobs.sequence_length}, and all the others "
            f"have the verdict {left.pop()}; raise it"
        )

    def save_model(model: Decoder, step: int, metrics: dict[str, Any]) -> None:
        checkpoints.save_checkpoint(
            here.checkpoint,
            model,
            tokenizer=opened.tokenizer,
            provenance={
                "run": context.config.name,
                "iteration": here.index,
                "parent": model_of(parent),
                "source": context.config.model,
                "fingerprint": print_,
                "judge": judge_card.to_dict(judge_card.of_config(context.config)),
                "training_rows": data,
                "examples": len(examples),
                "step": step,
                "validation": metrics,
            },
            barrier=context.processes.barrier,
        )

    bar = StepBar(f"finetune {here.index}", len(plan.steps))

    def log(event: dict[str, Any]) -> None:
        context.log("train_step", iteration=here.index, **event)
        bar.show(event)

    with bar:
        result = finetune(
            model=opened.model,
            examples=examples,
            knobs=knobs,
            seed=context.config.seed,
            mesh=opened.mesh,
            state_dir=here.train_state,
            validate=_validator(context, opened.tokenizer, judging, prompts),
            save_model=save_model,
            log=log,
            stop_requested=preemption.requested,
        )
    curve = {
        "steps": result.steps,
        "validations": result.validations,
        "best_step": result.best_step,
        "best_accuracy": result.best_accuracy,
        "too_long": list(result.dropped),
    }
    context.processes.from_first("loss curve", lambda: files.write_json(here.loss_curve, curve))


def make_examples(rows: Sequence[TrainingExample], tokenizer: Tokenizer) -> list[Example]:
    """The ids of each prompt and the ids that were sampled; nothing is tokenized again.

    A judgment that was ended from outside (a forced verdict, a stop string) gets the end-of-turn
    token that the model did not come to print, so that the next judge learns to stop there. One
    from an endpoint has no ids: its text is encoded.
    """
    examples = []
    prompts = tokenizer.prompt_ids_batch(row.messages for row in rows)
    for row, prompt_ids in zip(rows, prompts, strict=True):
        completion = tuple(row.completion_ids)
        if not completion:
            completion = tuple(tokenizer.encode(row.completion, continues=True))
        if not completion or completion[-1] not in tokenizer.eos_ids:
            completion += tokenizer.eos_ids[:1]
        examples.append(Example(id=row.id, prompt_ids=prompt_ids, completion_ids=completion))
    return examples


def _validator(
    context: Context, tokenizer: Tokenizer, judging: judge.Judge, prompts: list[Prompt]
) -> Callable[[Decoder, int], dict[str, Any]]:
    """Measures a judge in training on the validation pairs: greedy, both orders, forced if the run
    forces. Each process judges its share of the prompts with its own copy of the weights."""
    processes = context.processes
    mine = prompts[processes.index :: processes.count]

    def validate(model: Decoder, step: int) -> dict[str, Any]:
        generator = _local_generator(model, tokenizer, context)
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

    return validate


def _local_generator(model: Decoder, tokenizer: Tokenizer, context: Context) -> LocalGenerator:
    """The weights in training, on this process's own devices in the decoding type."""
    knobs = context.config.decoding
    mesh = make_mesh(knobs.mesh, jax.local_devices())
    local, received = hand_over_model(model, mesh, knobs.dtype)
    context.log("handed_over", bytes_received=received)
    return LocalGenerator(local, tokenizer, knobs, mesh)
