"""How are the pool's instructions put into categories by the seed, and the subset chosen?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ste_jax.config import identity
from ste_jax.config.identity import fingerprint
from ste_jax.generation import Generator
from ste_jax.pipeline.context import SEED_STEP, Context, named_decoding, named_role
from ste_jax.pipeline.intake import answers_of
from ste_jax.pipeline.with_model import ask, chat_template_of
from ste_jax.records import Instruction, Selection, shard_of
from ste_jax.run import marks
from ste_jax.run.changes import RecipeStep, counted
from ste_jax.run.sharded_work import ShardedWork, Words
from ste_jax.stages import near_duplicates, select
from ste_jax.stages.roles import make_role, role_fingerprint
from ste_jax.system.errors import WorkError


def label(context: Context) -> None:
    """Label every instruction of the pool: its category and, where it is needed, its difficulty."""
    run, knobs, seed = context.run, context.config.select, context.run.iteration(0)
    role = make_role(
        "classify",
        context.config.roles.classify,
        seed=context.config.seed,
        chat_template=chat_template_of(seed, knobs.generator),
    )
    asked = [knobs.labels, knobs.content_free, knobs.categories, select.needs_difficulty(knobs)]
    stage = ShardedWork(
        name="label",
        made_under=fingerprint(
            "label",
            select.VERSION,
            [asked, role_fingerprint(role)],
            model=answers_of(context, seed, knobs.generator),
            named={
                **identity.named(
                    "select", knobs, only=("labels", "content_free", "categories", "generator")
                ),
                **named_role(context.config, "classify"),
                **named_decoding(context.config, knobs.generator),
            },
        ),
        words=Words(
            step=RecipeStep(
                title="label",
                takes=("intake",),
                asks="" if knobs.generator else SEED_STEP,
                model="the seed",
            ),
            rows="instructions",
            verb="are labelled",
            gone="are no longer in the pool",
        ),
        home=run.root / "instructions",
        inputs=run.pool.read,
        outputs=(run.label_scores, run.labels),
        input_of=lambda table, row: row.id,
        together=knobs.labels == "score",
    )

    def work(rows: Iterator[Instruction], generator: Generator) -> Iterator[Any]:
        for row, found, scores in select.label(rows, generator, role, knobs):
            yield row, (scores, [found])

    ask(context, stage, 0, seed, work, knobs.generator)


def choose(context: Context) -> None:
    """Choose the subset and split it. Global, so process 0 alone; the others wait."""
    context.processes.from_first("choose", lambda: _choose(context))


def _choose(context: Context) -> None:
    run, knobs = context.run, context.config.select
    step = RecipeStep(title="select", takes=("intake", "label"), inputs="what was labelled")
    asked = identity.of(knobs, without=("generator",))  # who labelled: see the labels' own mark
    asked["near_duplicates"] = near_duplicates.VERSION
    inputs = context.input_ids([run.labels], step)
    made_under = fingerprint("choose", select.VERSION, asked, inputs=inputs)
    labels_print = marks.marked(run.root / "instructions" / "label.mark.json")
    named = identity.named("select", knobs, without=("generator",))
    made_under = fingerprint("choose", select.VERSION, made_under, model=labels_print, named=named)
    mark = run.root / "instructions" / "choose.mark.json"

    def what() -> str:
        try:
            number = run.labels.count()
        except WorkError:  # they are damaged, and are about to go
            number = 0
        among = f" among {counted(number, 'instructions')}" if number else ""
        return f"the choice{among} is made"

    if not context.wants(step, what, mark, made_under, (run.selected, run.selection)):
        if not context.changes.dry:
            run.selection.check()
        return
    chosen = select.choose(run.pool.rows, run.labels.rows(), knobs)
    by_shard: dict[int, list[Any]] = {shard: [] for shard in range(run.shards)}
    for each in chosen:
        by_shard[shard_of(each.id, run.shards)].append(each)
    kept = {each.id: each for each in chosen if each.fate == "kept"}
    if not kept:
        counts = dict(Counter(each.fate for each in chosen))
        raise WorkError(f"select: no instruction was kept of {len(chosen)}: {counts}")
    marks.forget(mark)
    fates, selected = 0, 0
    for shard, rows in by_shard.items():
        fates += run.selection.write(shard, rows)
        pool = [row for row in run.pool.read(shard) if row.id in kept]
        selected += run.selected.write(shard, [_with_fate(row, kept[row.id]) for row in pool])
    run.selection.expect(fates, len(chosen))
    run.selected.expect(selected, len(kept))
    marks.mark(mark, made_under)
    context.log("selected", kept=len(kept), of=len(chosen))


def _with_fate(row: Instruction, fate: Selection) -> Instruction:
    return dataclasses.replace(
        row, category=fate.category, difficulty=fate.difficulty, split=fate.split
    )
