"""How are the pairs judged from which an iteration learns?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from etils import epath

from ste_jax.config import identity
from ste_jax.config.identity import Identity, fingerprint
from ste_jax.config.judging import filled
from ste_jax.config.schema import AnnotateKnobs, Config
from ste_jax.evaluation.judged import rows_of
from ste_jax.generation import Generator
from ste_jax.pipeline.context import Context, maker_of, named_decoding, named_role, shown_as
from ste_jax.pipeline.intake import answers_of, model_of
from ste_jax.pipeline.with_model import ask
from ste_jax.records import Judgment, Pair, Prompt
from ste_jax.run.changes import RecipeStep
from ste_jax.run.layout import IterationDir
from ste_jax.run.sharded import run_sharded
from ste_jax.run.sharded_work import ShardedWork, Words
from ste_jax.run.tables import Table
from ste_jax.stages import annotate as annotation
from ste_jax.stages import judge
from ste_jax.stages.roles import JUDGE, make_role, role_fingerprint, sample_key
from ste_jax.tasks import Question, task_named


def make_judge(
    context: Context, asked: IterationDir, stage: str, iteration: int, endpoint: str = ""
) -> judge.Judge:
    """The judge that an iteration's checkpoint holds, or one behind an endpoint."""
    config = context.config
    task = task_named(config.judge.task)
    role = make_role(JUDGE, config.roles.judge, seed=config.seed, task=task)
    keyed = dataclasses.replace(role, key=sample_key(config.seed, stage, iteration))
    model = answers_of(context, asked, endpoint) if endpoint else model_of(asked)
    return judge.Judge(role=keyed, knobs=filled(config.judge), model=model, iteration=iteration)


def judge_fingerprint(judging: judge.Judge) -> list[Any]:
    """What a fingerprint holds of a judge: all that decides its judgments, except the prompts."""
    values = [judge.VERSION, role_fingerprint(judging.role), identity.of(judging.knobs)]
    return values + judging.task.identity()


def annotate(context: Context, iteration: int, derived: Sequence[epath.Path]) -> None:
    """Have the last iteration's judge judge every training pair. `derived` are files made of its
    judgments, which are removed where these are made anew."""
    here, knobs = context.run.iteration(iteration), context.config.annotate
    asked = asked_to_annotate(context, iteration)
    pairs_of = pairs_of_split(context, "train")
    title, made_by = f"annotate {iteration}", "pair"
    make_prompts(
        context, here.prompts, here.root, pairs_of, asked.judging, title, made_by, knobs.orders
    )
    made_under = judgments_fingerprint(
        context, "annotate", annotation.VERSION, annotated_identity(knobs), asked
    )
    work = judging_work("annotate", made_under, here, asked, here.judgments, derived)
    draw = partial(annotation.annotate, judge=asked.judging, knobs=knobs)
    judge_questions(context, iteration, work, draw, asked)


@dataclasses.dataclass(frozen=True)
class Asked:
    """The judge that is asked, and how."""

    place: IterationDir
    """The directory of that judge."""
    judging: judge.Judge
    endpoint: str = ""
    named: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The knob that chose it, by dotted name."""


def annotated_identity(knobs: AnnotateKnobs) -> dict[str, Any]:
    """The knobs that decide which judgments there are of a prompt."""
    # The model is another part of the fingerprint; `orders` decides which prompts there are.
    return identity.of(knobs, without=("generator", "orders"))


def asked_to_annotate(context: Context, iteration: int) -> Asked:
    """The last iteration's judge, or the endpoint that stands in its place."""
    place = context.judge_in(context.run.iteration(iteration - 1))
    endpoint = context.config.annotate.generator.get(str(iteration), "")
    judging = make_judge(context, place, "annotate", iteration, endpoint)
    return Asked(place, judging, endpoint, {f"annotate.generator.{iteration}": endpoint})


def judgments_fingerprint(
    context: Context,
    name: str,
    version: int,
    choice: Any,
    asked: Asked,
    also: Mapping[str, Any] | None = None,
) -> Identity:
    """The fingerprint of a table of judgments, whose choice of samples `choice` decides; `also` are
    knobs of that, by dotted name, besides those of `annotate`."""
    model = answers_of(context, asked.place, asked.endpoint)
    config = context.config
    named = {
        **identity.named("annotate", config.annotate, without=("generator", "orders")),
        **asked.named,
        **(also or {}),
        **named_judge(config, asked.endpoint),
    }
    knobs = [choice, judge_fingerprint(asked.judging)]
    return fingerprint(name, version, knobs, model=model, named=named)


def judging_work(
    name: str,
    made_under: Identity,
    here: IterationDir,
    asked: Asked,
    table: Table[Judgment],
    derived: Sequence[epath.Path],
    prompts: Callable[[int], list[Prompt]] | None = None,
) -> ShardedWork:
    """The work of drawing judgments into a `table` of an iteration, of all its prompts or of those
    that `prompts` gives for a shard."""
    questions = judge.Questions(asked.judging.task, prompts or here.prompts.read)
    return ShardedWork(
        name=name,
        made_under=made_under,
        home=here.root,
        inputs=questions.read,
        outputs=(table,),
        input_of=questions.of,
        derived=derived,
    )


def named_judge(config: Config, endpoint: str = "") -> dict[str, Any]:
    """All knobs that decide what a judge prints, ours or one behind an `endpoint`, by dotted name
    (see `identity.named`)."""
    judging = identity.named("judge", filled(config.judge))
    return {**judging, **named_role(config, "judge"), **named_decoding(config, endpoint)}


def judge_questions(
    context: Context,
    iteration: int,
    stage: ShardedWork,
    draw: Callable[..., Iterator[tuple[Question, list[Judgment]]]],
    asked: Asked,
    takes: Sequence[str] = (),
) -> None:
    """Run a stage in which questions are judged. `draw` takes the questions and a generator, and
    yields each question with its judgments."""

    def work(rows: Iterator[Question], generator: Generator) -> Iterator[Any]:
        for row, found in draw(rows, generator):
            yield row, (found,)

    words = words_of_judging(
        asked.judging,
        RecipeStep(
            title=f"{stage.name.replace('_', ' ')} {iteration}",
            takes=(f"prompt set of annotate {iteration}", "pair", *takes),
            asks="" if asked.endpoint else maker_of(context.config, asked.place),
            model=f"the judge of iteration {asked.place.index}",
        ),
    )
    words = dataclasses.replace(
        words,
        home=f"iteration {iteration}",
        shown=shown_as(context, iteration, stage.name.replace("_", " ")),
    )
    stage = dataclasses.replace(stage, words=words)
    ask(context, stage, iteration, asked.place, work, asked.endpoint)


def pairs_of_split(context: Context, split: str) -> Callable[[int], list[Pair]]:
    """A function that gives the pairs of a shard whose instruction is in a split."""
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
    title: str,
    made_by: str,
    orders: str = "",
) -> str:
    """Make the prompts about some pairs, all of them or those that `annotate.orders` asks for.

    `title` is that of the step that asks, and `made_by` that of what made the pairs. Returns what
    messages call the making of prompts.
    """
    step = RecipeStep(title=f"prompt set of {title}", takes=(made_by,))
    task, template = judging.task, judging.role.template
    stage = ShardedWork(
        name="prompts",
        made_under=fingerprint(
            "prompts",
            judge.VERSION,
            [template.fingerprint(), orders or "both", *task.identity()],
            named={
                name: value
                for name, value in named_role(context.config, "judge").items()
                if name.endswith("template")
            }
            | ({"annotate.orders": orders} if orders else {})
            | {"judge.task": task.name},
        ),
        words=Words(step=step, rows="pairs", verb="are put into prompts"),
        home=home,
        inputs=pairs_of,
        outputs=(table,),
        input_of=lambda table, row: row.pair_id,
        by_model=False,
    )
    run_sharded(
        stage,
        lambda pairs: (
            (pair, (list(judge.build_prompts(task, pair, template, orders or "both")),))
            for pair in pairs
        ),
        context.processes,
        changes=context.changes,
    )
    return step.title


def words_of_judging(judging: judge.Judge, step: RecipeStep) -> Words:
    """The words of messages about a step that judges."""
    rows = rows_of(judging.task)
    return Words(step=step, rows=rows, verb="are judged", gone="are no longer asked about")


def validation_questions(context: Context, judging: judge.Judge) -> list[Question]:
    """All questions about the validation pairs, ordered by id. These pairs are neither trained on
    nor held out."""
    run = context.run
    ids = {row.id for row in run.selected.rows() if row.split == "validation"}
    prompts = [
        prompt
        for pair in run.pairs.rows()
        if pair.instruction_id in ids
        for prompt in judging.task.prompts(pair, judging.role.template)
    ]
    return sorted(judging.task.questions(prompts), key=lambda question: question.id)
