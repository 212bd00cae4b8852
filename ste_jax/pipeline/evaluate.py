"""How well does an iteration's judge judge, on pairs that no judge learns from?

Of the recipe's steps this one alone measures (`ste_jax.evaluation.measure`): nothing that is learnt
comes from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ste_jax.config.from_plain import to_dict
from ste_jax.config.identity import fingerprint
from ste_jax.config.schema import Config, LabelledSetKnobs
from ste_jax.evaluation.judged import judging_stage, judging_work
from ste_jax.evaluation.measure import Measures, check_pairs, measure_judged, why_unasked
from ste_jax.pipeline.annotate import (
    judge_fingerprint,
    make_judge,
    make_prompts,
    named_judge,
    pairs_of_split,
    words_of_judging,
)
from ste_jax.pipeline.context import Context, maker_of, shown_as
from ste_jax.pipeline.intake import answers_of, is_read, is_there, read_labelled
from ste_jax.pipeline.with_model import ask
from ste_jax.records import Pair
from ste_jax.reporting.curve import HELD_OUT, curve, sets_of
from ste_jax.run.changes import RecipeStep, counted
from ste_jax.run.layout import IterationDir, JudgedDir, RunDir
from ste_jax.run.tracking import RECIPE, Tracker
from ste_jax.stages import judge
from ste_jax.system import files, progress
from ste_jax.system.errors import WorkError
from ste_jax.system.progress_lines import Figure
from ste_jax.tasks import task_named


def check_sets(config: Config, run: RunDir) -> None:
    """Checks, before a run is begun or changed, that its labelled sets can be read and measured as
    the config asks.

    Raises:
      RequestError: one cannot be read, or not be measured so.
    """
    task = task_named(config.judge.task)
    for knobs in config.evaluate.sets:
        there = is_read(run, knobs)
        pairs = run.labelled(knobs.name).rows() if there else read_labelled(knobs)
        check_pairs(
            task, pairs, _measures(config, knobs), f"evaluate.sets: {knobs.name}, {knobs.data}"
        )


def _measures(config: Config, knobs: LabelledSetKnobs | None = None) -> Measures:
    """What is measured on the held-out pairs, or on a labelled set."""
    bootstrap = config.evaluate.bootstrap
    if knobs is None:
        return Measures(bootstrap=bootstrap)
    return Measures(bootstrap=bootstrap, by=knobs.by, traces=knobs.traces)


def evaluate(context: Context, iteration: int, phase: str = "") -> None:
    """Measure the iteration's judge, or that of a `phase` of its fine-tuning before the last, on
    the held-out pairs and on the labelled sets, with votes.

    Raises:
      WorkError: there is nothing to measure on.
    """
    here = context.run.iteration(iteration)
    title, shown = f"evaluate {iteration}", shown_as(context, iteration, "evaluate")
    if phase:
        here = here.phase(phase)
        title, shown = (f"{each} after {phase}" for each in (title, shown))
    here = context.judge_in(here)
    if context.changes.dry and not is_there(here):
        if here.evaluation.exists():
            what = "the judge is measured again, of what is there and fits"
            context.changes.plan(title, "goes on", what)
        else:
            context.changes.first(title, "the judge is measured, for the first time")
        return
    judging = make_judge(context, here, "evaluate", 0)
    judging = dataclasses.replace(judging, iteration=here.index)
    if context.config.evaluate.greedy:
        judging = judging.greedy()
    heldout = pairs_of_split(context, "heldout")
    step = RecipeStep(title=title, takes=("pair",))
    _judge_pairs(context, here, here.heldout, heldout, judging, step, f"{shown}, held-out")
    for knobs in context.config.evaluate.sets:
        pairs_of = context.labelled(knobs.name)
        on = f" on {knobs.name}"
        step = RecipeStep(title=title + on, takes=(f"labelled {knobs.name}",))
        judged = here.labelled(knobs.name)
        _judge_pairs(context, here, judged, pairs_of, judging, step, f"{shown}, {knobs.name}")
    if not context.changes.dry:
        context.processes.from_first(
            "measure", lambda: _measure(context, here, judging.model, shown)
        )


def _judge_pairs(
    context: Context,
    here: IterationDir,
    judged: JudgedDir,
    pairs_of: Callable[[int], list[Pair]],
    judging: judge.Judge,
    step: RecipeStep,
    shown: str,
) -> None:
    """Have some pairs judged. `step` is the one that asks, which takes the pairs; while it goes on
    it is called as `shown`."""
    (made_by,) = step.takes
    prompts = make_prompts(
        context, judged.prompts, judged.root, pairs_of, judging, step.title, made_by
    )
    knobs = context.config.evaluate
    made_under = fingerprint(
        "evaluate",
        1,
        [knobs.votes, judge_fingerprint(judging)],
        model=answers_of(context, here),
        named={"evaluate.votes": knobs.votes, **named_judge(context.config)},
    )
    step = dataclasses.replace(
        step,
        takes=(prompts, made_by),
        asks=maker_of(context.config, here),
        model=f"the judge of iteration {here.index}",
    )
    words = dataclasses.replace(words_of_judging(judging, step), shown=shown)
    stage = judging_stage(judged, judging.task, made_under, here.evaluation, words)
    ask(context, stage, here.index, here, judging_work(judging, knobs.votes))


def _measure(context: Context, here: IterationDir, model: str, shown: str) -> None:
    number = len({prompt.pair_id for prompt in here.heldout.prompts.rows()})
    if not number:
        raise WorkError(
            "evaluate: there are no held-out pairs; raise select.heldout or look at pairs/dropped"
        )
    why = why_unasked(here.heldout)
    if why:
        raise WorkError(
            f"evaluate: iteration {here.index}'s judge could be asked about not one of the "
            f"{number} held-out pairs; the first: {why}"
        )
    config, knobs = context.config, context.config.evaluate
    task = task_named(config.judge.task)
    found = measure_judged(task, here.heldout, (), _measures(config))
    before = here.evaluation.read_bytes() if here.evaluation.exists() else b""
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
    changed = here.evaluation.read_bytes() != before
    if changed:
        progress.found(shown, list(_accuracies(files.read_json(here.evaluation))))
    if here.root.parent.name == "iterations":
        _track(context, here, changed=changed)


def _accuracies(evaluation: Mapping[str, Any]) -> Iterator[Figure]:
    """The accuracy on the held-out pairs and on each labelled set, to be shown."""
    for name, of_set in {HELD_OUT: evaluation, **evaluation["sets"]}.items():
        if (accuracy := of_set.get("accuracy")) is not None:
            asked = of_set["n"] - of_set.get("n_too_long", 0)
            where = f"{counted(asked, 'pairs')}, {name}"
            yield Figure(f"accuracy/{name}", accuracy, f"accuracy {accuracy:.3f} ({where})")


def _track(context: Context, here: IterationDir, *, changed: bool) -> None:
    """Write the curve of the judges so far, where it can be watched, if it is not there so."""
    config, root = context.config, context.run.root
    with Tracker(
        config.track,
        root,
        RECIPE,
        run=config.name,
        attempt=fingerprint("attempt", 1, [str(root), to_dict(config)]),
        config=to_dict(config),
    ) as tracker:
        if changed or not tracker.recipe_written:
            found = curve(context.run)
            tracker.recipe(found, here.index, sets_of(found[here.index]))


def _measure_set(context: Context, here: IterationDir, knobs: LabelledSetKnobs) -> dict[str, Any]:
    task, pairs = task_named(context.config.judge.task), context.run.labelled(knobs.name).rows()
    measures = _measures(context.config, knobs)
    found = measure_judged(task, here.labelled(knobs.name), pairs, measures)
    return {
        "what": f"agreement with the labels of {knobs.data}",
        "told": knobs.caption,  # the name in files of earlier versions
        "meanings": {},
        **found,
        "by": found.get("by", {}),
    }
