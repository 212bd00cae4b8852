"""How are the pairs judged that an iteration learns from: by the last iteration's judge for SFT, by
the one that SFT gave for DPO?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from etils import epath

from ste_jax.config.from_plain import to_dict
from ste_jax.config.schema import AnnotateKnobs, Config
from ste_jax.generation import Generator
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.intake import answers_of, model_of
from ste_jax.pipeline.with_model import ask
from ste_jax.records import Judgment, Pair, Prompt
from ste_jax.run import marks
from ste_jax.run.layout import IterationDir, Table, fingerprint
from ste_jax.run.sharded import ShardedStage, run_sharded
from ste_jax.stages import annotate as annotation
from ste_jax.stages import judge
from ste_jax.stages.roles import make_role, role_fingerprint, sample_key
from ste_jax.system import files, preemption


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
    """The last iteration's judge judges every training pair. For DPO, where it learns from the same
    judgments, it judges those again that have a correct judgment and none that failed."""
    _annotate(context, iteration)
    here = context.run.iteration(iteration)
    if not dpo_wants_more(context.config):
        context.processes.from_first("annotate_more", lambda: _forget_more(here))
    elif not dpo_asks_sft(context.config):
        asked = _asked_to_annotate(context, iteration)
        _annotate_more(context, iteration, asked, here.judgments)


def judge_for_dpo(context: Context, iteration: int, parent: IterationDir) -> None:
    """The judge that DPO begins with, `parent`'s, judges every training pair, all samples of each;
    and then more of those that have a correct judgment and none that failed."""
    here, knobs = context.run.iteration(iteration), context.config.annotate
    asked = _Asked(parent, make_judge(context, parent, "dpo_judgments", iteration))
    knobs = dataclasses.replace(knobs, policy="all")
    stage = ShardedStage(
        name="dpo_judgments",
        print_=_print(context, "dpo_judgments", annotation.VERSION, _told(knobs), asked),
        home=here.root,
        inputs=here.prompts.read,
        outputs=(here.dpo_judgments,),
        input_of=lambda table, row: row.prompt_id,
        derived=_preferences(here),
    )
    story = partial(annotation.annotate, judge=asked.judging, knobs=knobs)
    _judge(context, iteration, stage, story, asked)
    if dpo_wants_more(context.config):
        _annotate_more(context, iteration, asked, here.dpo_judgments)


def dpo_asks_sft(config: Config) -> bool:
    """Whether DPO learns from judgments of the judge that SFT gave."""
    return "dpo" in config.finetune.stages and config.finetune.dpo.judgments == "sft"


def dpo_wants_more(config: Config) -> bool:
    """Whether more judgments are drawn, at a higher temperature, for DPO alone."""
    return "dpo" in config.finetune.stages and config.finetune.dpo.more_samples > 0


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Who judges, and how."""

    place: IterationDir
    """Where that judge lies."""
    judging: judge.Judge
    endpoint: str = ""


def _annotate(context: Context, iteration: int) -> None:
    here, knobs = context.run.iteration(iteration), context.config.annotate
    asked = _asked_to_annotate(context, iteration)
    pairs_of = pairs_of_split(context, "train")
    make_prompts(context, here.prompts, here.root, pairs_of, asked.judging, orders=knobs.orders)
    derived = [here.curate_mark, here.curation, here.training.directory]
    stage = ShardedStage(
        name="annotate",
        print_=_print(context, "annotate", annotation.VERSION, _told(knobs), asked),
        home=here.root,
        inputs=here.prompts.read,
        outputs=(here.judgments,),
        input_of=lambda table, row: row.prompt_id,
        derived=derived if dpo_asks_sft(context.config) else [*derived, *_preferences(here)],
    )
    story = partial(annotation.annotate, judge=asked.judging, knobs=knobs)
    _judge(context, iteration, stage, story, asked)


def _told(knobs: AnnotateKnobs) -> dict[str, Any]:
    """What of the knobs decides which judgments there are of a prompt."""
    told = to_dict(knobs)
    del told["generator"]  # whose answers they are is told apart
    del told["orders"]  # it decides which prompts there are, not what is made of each
    return told


def _annotate_more(context: Context, iteration: int, asked: _Asked, drawn: Table[Judgment]) -> None:
    """More samples, at a higher temperature, of the prompts of which `drawn` holds correct
    judgments and none that failed."""
    here, config = context.run.iteration(iteration), context.config
    knobs, dpo = config.annotate, config.finetune.dpo
    asked = dataclasses.replace(asked, judging=asked.judging.at(dpo.more_temperature))

    def wanting(shard: int) -> list[Prompt]:
        judgments: dict[str, list[Judgment]] = {}
        for row in drawn.read(shard):
            judgments.setdefault(row.prompt_id, []).append(row)
        return [
            prompt
            for prompt in here.prompts.read(shard)
            if annotation.wants_more(prompt, judgments[prompt.id], dpo.negatives)
        ]

    told = [knobs.samples, list(knobs.waves), dpo.more_samples, list(dpo.negatives)]
    stage = ShardedStage(
        name="annotate_more",
        print_=_print(context, "annotate_more", annotation.MORE_VERSION, told, asked),
        home=here.root,
        inputs=wanting,
        outputs=(here.more_judgments,),
        input_of=lambda table, row: row.prompt_id,
        derived=_preferences(here),
    )
    story = partial(annotation.annotate_more, judge=asked.judging, knobs=knobs, dpo=dpo)
    _judge(context, iteration, stage, story, asked)


def _forget_more(here: IterationDir) -> None:
    """What was drawn for a DPO that is no more wanted so."""
    mark = here.root / "annotate_more.json"
    marks.put_aside([here.more_judgments.directory], mark, marks.marked(mark))
    files.forget(mark)


def _preferences(here: IterationDir) -> tuple[epath.Path, ...]:
    return here.prefer_mark, here.preferring, here.preferences.directory


def _asked_to_annotate(context: Context, iteration: int) -> _Asked:
    """The last iteration's judge, or the endpoint that stands in its place."""
    place = context.run.iteration(iteration - 1)
    endpoint = context.config.annotate.generator.get(str(iteration), "")
    return _Asked(place, make_judge(context, place, "annotate", iteration, endpoint), endpoint)


def _print(context: Context, name: str, version: int, told: Any, asked: _Asked) -> str:
    model = answers_of(context, asked.place, asked.endpoint)
    return fingerprint(name, version, [told, judge_fingerprint(asked.judging)], model=model)


def _judge(
    context: Context,
    iteration: int,
    stage: ShardedStage,
    story: Callable[..., Iterator[tuple[Prompt, list[Judgment]]]],
    asked: _Asked,
) -> None:
    def work(rows: Iterator[Prompt], generator: Generator, in_flight: int) -> Iterator[Any]:
        for row, found in story(rows, generator, in_flight=in_flight, poll=preemption.poll):
            yield row, (found,)

    ask(context, stage, iteration, asked.place, work, asked.endpoint)


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
