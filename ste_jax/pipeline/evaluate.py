"""How well does an iteration's judge judge, on pairs that nothing is learnt from?

Of the recipe's steps this one alone may ask which steps of a judgment are right
(`ste_jax.evaluation.traces`): nothing that is learnt comes from here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from ste_jax.config.schema import Config, LabelledSetKnobs
from ste_jax.errors import RequestError, WorkError
from ste_jax.evaluation.metrics import measure, measure_groups
from ste_jax.evaluation.traces import CHECKERS
from ste_jax.generation import Generator
from ste_jax.pipeline.annotate import judge_fingerprint, make_judge, make_prompts, pairs_of_split
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.intake import answers_of, is_read, read_labelled
from ste_jax.pipeline.with_model import ask
from ste_jax.records import NOT_ASKED, Pair, Prompt
from ste_jax.run.layout import IterationDir, JudgedDir, RunDir, fingerprint
from ste_jax.run.sharded import ShardedStage
from ste_jax.stages import judge
from ste_jax.system import files, preemption


def check_sets(config: Config, run: RunDir) -> None:
    """Looks, before a run is begun or changed, whether its labelled sets can be read and measured
    as they are to be.

    Raises:
      RequestError: one cannot be read, or the steps of judgments are to be checked where nobody
        can.
    """
    for knobs in config.evaluate.sets:
        there = is_read(run, knobs)
        if there and not knobs.traces:
            continue
        pairs = run.labelled(knobs.name).rows() if there else read_labelled(knobs)
        for pair in pairs if knobs.traces else ():
            if not CHECKERS[knobs.traces].knows(pair):
                raise RequestError(
                    f"evaluate.sets: {knobs.name} has traces: {knobs.traces}, and "
                    f"{pair.messages[-1]['content'][:80]!r} in {knobs.data} is no task whose steps "
                    "that can check; leave traces out"
                )


def evaluate(context: Context, iteration: int) -> None:
    """The iteration's judge on the held-out pairs and on the labelled sets, in both orders, with
    votes; and the judges of its stages of fine-tuning before the last.

    Raises:
      WorkError: there is nothing to measure on.
    """
    here = context.run.iteration(iteration)
    if iteration:
        for stage in context.config.finetune.stages[:-1]:
            _evaluate(context, here.stage(stage))
    _evaluate(context, here)


def _evaluate(context: Context, here: IterationDir) -> None:
    judging = make_judge(context, here, "evaluate", 0)
    judging = dataclasses.replace(judging, iteration=here.index)
    if context.config.evaluate.greedy:
        judging = judging.greedy()
    _judge_pairs(context, here, here.heldout, pairs_of_split(context, "heldout"), judging)
    for knobs in context.config.evaluate.sets:
        pairs = context.run.labelled(knobs.name)
        _judge_pairs(context, here, here.labelled(knobs.name), pairs.read, judging)
    context.processes.from_first("measure", lambda: _measure(context, here, judging.model))


def _judge_pairs(
    context: Context,
    here: IterationDir,
    judged: JudgedDir,
    pairs_of: Callable[[int], list[Pair]],
    judging: judge.Judge,
) -> None:
    make_prompts(context, judged.prompts, judged.root, pairs_of, judging)
    knobs = context.config.evaluate
    stage = ShardedStage(
        name="evaluate",
        print_=fingerprint(
            "evaluate",
            1,
            [knobs.votes, judge_fingerprint(judging)],
            model=answers_of(context, here),
        ),
        home=judged.root,
        inputs=judged.prompts.read,
        outputs=(judged.judgments,),
        input_of=lambda table, row: row.prompt_id,
        derived=(here.evaluation,),
    )

    def work(rows: Iterator[Prompt], generator: Generator, in_flight: int) -> Iterator[Any]:
        for row, found in judge.judge_all(
            rows, generator, judging, knobs.votes, in_flight=in_flight, poll=preemption.poll
        ):
            yield row, (found,)

    ask(context, stage, here.index, here, work)


def _measure(context: Context, here: IterationDir, model: str) -> None:
    prompts = list(here.heldout.prompts.rows())
    if not prompts:
        raise WorkError(
            "evaluate: there are no held-out pairs; raise select.heldout or look at pairs/dropped"
        )
    knobs = context.config.evaluate
    found = measure(prompts, here.heldout.judgments.rows(), bootstrap=knobs.bootstrap)
    if sum(found["failures"].get(kind, 0) for kind in NOT_ASKED) == len(prompts):
        first = next(iter(here.heldout.judgments.rows()))
        raise WorkError(
            f"evaluate: iteration {here.index}'s judge could be asked about not one of the "
            f"{found['n']} held-out pairs; the first: {first.text}"
        )
    files.write_json(
        here.evaluation,
        {
            "what": "agreement with constructed labels",
            "iteration": here.index,
            "judge": model,
            "greedy": knobs.greedy,
            **found,
            "sets": {each.name: _measure_set(context, here, each) for each in knobs.sets},
        },
    )


def _measure_set(context: Context, here: IterationDir, knobs: LabelledSetKnobs) -> dict[str, Any]:
    judged, bootstrap = here.labelled(knobs.name), context.config.evaluate.bootstrap
    pairs = {pair.id: pair for pair in context.run.labelled(knobs.name).rows()}
    prompts, judgments = list(judged.prompts.rows()), list(judged.judgments.rows())
    steps = None
    if knobs.traces:
        checker, asked = CHECKERS[knobs.traces], {prompt.id: prompt for prompt in prompts}
        steps = {
            said.prompt_id: checker.steps(
                said.text, pairs[asked[said.prompt_id].pair_id], asked[said.prompt_id]
            )
            for said in judgments
            if said.sample == 0
        }
    found = measure(prompts, judgments, bootstrap=bootstrap, steps=steps)
    by = {}
    for column in knobs.by:
        groups = {id: _group(json.loads(pair.extra)[column]) for id, pair in pairs.items()}
        by[column] = measure_groups(prompts, judgments, groups, bootstrap=bootstrap)
    return {
        "what": f"agreement with the labels of {knobs.data}",
        "told": knobs.told,
        "meanings": dict(CHECKERS[knobs.traces].meanings) if knobs.traces else {},
        **found,
        "by": by,
    }


def _group(value: Any) -> str:
    """What the pairs with this value in a column are called; JSON can escape half a character."""
    return str(value).encode("utf-8", "replace").decode()
