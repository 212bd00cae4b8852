"""How does an iteration's judge judge the pairs that the next one learns from?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from etils import epath

from ste_jax import files, preemption
from ste_jax.config import Config
from ste_jax.context import Context
from ste_jax.generators.protocol import Generator
from ste_jax.records import Judgment, Pair, Prompt
from ste_jax.rundir import IterationDir, Table, fingerprint
from ste_jax.stages import annotate as annotation
from ste_jax.stages import judge
from ste_jax.stages.asking import make_role, role_fingerprint, sample_key
from ste_jax.steps.asking import ask
from ste_jax.steps.pool import answers_of, model_of
from ste_jax.strict import to_dict
from ste_jax.workplan import ShardedStage, run_sharded


def make_judge(
    context: Context, asked: IterationDir, stage: str, iteration: int, endpoint: str = ""
) -> judge.Judge:
    """The judge that an iteration's checkpoint holds, or one behind an endpoint."""
    config = context.config
    role = make_role("judge", config.roles.judge, seed=config.seed)
    keyed = dataclasses.replace(role, key=sample_key(config.seed, stage, iteration))
    model = answers_of(context, asked, endpoint) if endpoint else model_of(asked)
    return judge.Judge(role=keyed, knobs=config.judge, model=model, iteration=iteration)


def judge_fingerprint(judging: judge.Judge) -> list[Any]:
    """All that decides what a judge prints, but for the prompts."""
    return [judge.VERSION, role_fingerprint(judging.role), to_dict(judging.knobs)]


def annotate(context: Context, iteration: int) -> None:
    """The last iteration's judge judges every training pair. For DPO it judges those again that
    have a correct judgment and none that failed."""
    _annotate(context, iteration)
    if dpo_wants_more(context.config):
        _annotate_more(context, iteration)
    else:
        here = context.run.iteration(iteration)
        context.processes.from_first("annotate_more", lambda: _forget_more(here))


def dpo_wants_more(config: Config) -> bool:
    """Whether judgments are drawn for DPO alone."""
    return "dpo" in config.finetune.stages and config.finetune.dpo.more_samples > 0


def _annotate(context: Context, iteration: int) -> None:
    here, judging = context.run.iteration(iteration), _annotating(context, iteration)
    knobs = context.config.annotate
    told = to_dict(knobs)
    del told["generator"]  # whose answers they are is told apart
    del told["orders"]  # it decides which prompts there are, not what is made of each
    pairs_of = pairs_of_split(context, "train")
    make_prompts(context, here.prompts, here.root, pairs_of, judging, orders=knobs.orders)
    stage = ShardedStage(
        name="annotate",
        print_=_print(context, iteration, "annotate", annotation.VERSION, told, judging),
        home=here.root,
        inputs=here.prompts.read,
        outputs=(here.judgments,),
        input_of=lambda table, row: row.prompt_id,
        derived=(here.curate_mark, here.curation, here.training.directory, *_preferences(here)),
    )
    _judge(context, iteration, stage, partial(annotation.annotate, judge=judging, knobs=knobs))


def _annotate_more(context: Context, iteration: int) -> None:
    here, config = context.run.iteration(iteration), context.config
    knobs, dpo = config.annotate, config.finetune.dpo
    judging = _annotating(context, iteration).at(dpo.more_temperature)

    def wanting(shard: int) -> list[Prompt]:
        judgments: dict[str, list[Judgment]] = {}
        for row in here.judgments.read(shard):
            judgments.setdefault(row.prompt_id, []).append(row)
        return [
            prompt
            for prompt in here.prompts.read(shard)
            if annotation.wants_more(prompt, judgments[prompt.id], dpo.negatives)
        ]

    told = [knobs.samples, list(knobs.waves), dpo.more_samples, list(dpo.negatives)]
    stage = ShardedStage(
        name="annotate_more",
        print_=_print(context, iteration, "annotate_more", annotation.MORE_VERSION, told, judging),
        home=here.root,
        inputs=wanting,
        outputs=(here.more_judgments,),
        input_of=lambda table, row: row.prompt_id,
        derived=_preferences(here),
    )
    story = partial(annotation.annotate_more, judge=judging, knobs=knobs, dpo=dpo)
    _judge(context, iteration, stage, story)


def _forget_more(here: IterationDir) -> None:
    """What was drawn for a DPO that is no more wanted so."""
    files.remove(here.root / "annotate_more.json")
    here.more_judgments.remove()


def _preferences(here: IterationDir) -> tuple[epath.Path, ...]:
    return here.prefer_mark, here.preferring, here.preferences.directory


def _endpoint(context: Context, iteration: int) -> str:
    return context.config.annotate.generator.get(str(iteration), "")


def _annotating(context: Context, iteration: int) -> judge.Judge:
    """The judge whose judgments an iteration learns from."""
    asked = context.run.iteration(iteration - 1)
    return make_judge(context, asked, "annotate", iteration, _endpoint(context, iteration))


def _print(
    context: Context, iteration: int, name: str, version: int, told: Any, judging: judge.Judge
) -> str:
    asked = context.run.iteration(iteration - 1)
    model = answers_of(context, asked, _endpoint(context, iteration))
    return fingerprint(name, version, [told, judge_fingerprint(judging)], model=model)


def _judge(
    context: Context,
    iteration: int,
    stage: ShardedStage,
    story: Callable[..., Iterator[tuple[Prompt, list[Judgment]]]],
) -> None:
    def work(rows: Iterator[Prompt], generator: Generator, in_flight: int) -> Iterator[Any]:
        for row, found in story(rows, generator, in_flight=in_flight, poll=preemption.poll):
            yield row, (found,)

    asked = context.run.iteration(iteration - 1)
    ask(context, stage, iteration, asked, work, _endpoint(context, iteration))


def pairs_of_split(context: Context, split: str) -> Callable[[int], list[Pair]]:
    """A shard's pairs whose instruction is of a split."""
    run = context.run

    def pairs_of(shard: int) -> list[Pair]:
        ids = {row.id for row in run.selected.read(shard) if row.split == split}
        return [pair for pair in run.pairs.read(shard) if pair.instruction_id in ids]

    return pairs_of


def make_prompts(
    context: Context,
    table: Table[Prompt],
    home: epath.Path,
    pairs_of: Callable[[int], list[Pair]],
    judging: judge.Judge,
    orders: str = "both",
) -> None:
    """What is asked about some pairs, each in both orders or in one."""
    template = judging.role.template
    build = judge.build_prompts if orders == "both" else judge.one_prompt
    stage = ShardedStage(
        name="prompts",
        print_=fingerprint("prompts", judge.VERSION, [template.fingerprint(), orders]),
        home=home,
        inputs=pairs_of,
        outputs=(table,),
        input_of=lambda table, row: row.pair_id,
    )
    run_sharded(
        stage,
        lambda pairs: ((pair, (list(build(pair, template)),)) for pair in pairs),
        context.processes,
    )


def validation_prompts(context: Context, judging: judge.Judge) -> list[Prompt]:
    """Both orders of the validation pairs, ordered by id: never trained on, never held out."""
    run = context.run
    ids = {row.id for row in run.selected.rows() if row.split == "validation"}
    prompts = [
        prompt
        for pair in run.pairs.rows()
        if pair.instruction_id in ids
        for prompt in judge.build_prompts(pair, judging.role.template)
    ]
    return sorted(prompts, key=lambda prompt: prompt.id)
