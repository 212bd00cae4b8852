"""How is the pool labelled by the seed, and the subset chosen?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ste_jax.config.from_plain import to_dict
from ste_jax.errors import WorkError
from ste_jax.generation import Generator
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.intake import answers_of
from ste_jax.pipeline.with_model import ask, chat_template_of
from ste_jax.records import Instruction, Selection, shard_of
from ste_jax.run import layout, marks
from ste_jax.run.layout import fingerprint
from ste_jax.run.sharded import ShardedStage
from ste_jax.stages import near_duplicates, select
from ste_jax.stages.roles import make_role, role_fingerprint
from ste_jax.system import files, preemption


def label(context: Context) -> None:
    """One label per instruction of the pool."""
    run, knobs, seed = context.run, context.config.select, context.run.iteration(0)
    role = make_role(
        "classify",
        context.config.roles.classify,
        seed=context.config.seed,
        chat_template=chat_template_of(seed, knobs.generator),
    )
    asked = [knobs.labels, knobs.content_free, knobs.categories, select.needs_difficulty(knobs)]
    stage = ShardedStage(
        name="label",
        print_=fingerprint(
            "label",
            select.VERSION,
            [asked, role_fingerprint(role)],
            model=answers_of(context, seed, knobs.generator),
        ),
        home=run.root / "instructions",
        inputs=run.pool.read,
        outputs=(run.label_scores, run.labels),
        input_of=lambda table, row: row.id,
        together=knobs.labels == "score",
    )

    def work(rows: Iterator[Instruction], generator: Generator, in_flight: int) -> Iterator[Any]:
        for row, found, scores in select.label(
            rows, generator, role, knobs, in_flight=in_flight, poll=preemption.poll
        ):
            yield row, (scores, [found])

    ask(context, stage, 0, seed, work, knobs.generator)


def choose(context: Context) -> None:
    """Choose the subset and split it. Global, so process 0 alone; the others wait."""
    context.processes.from_first("choose", lambda: _choose(context))


def _choose(context: Context) -> None:
    run, knobs = context.run, context.config.select
    asked = to_dict(knobs)
    del asked["generator"]  # who labelled is told by the labels' own mark
    asked["near_duplicates"] = near_duplicates.VERSION
    print_ = fingerprint("choose", select.VERSION, asked, inputs=layout.row_ids([run.labels]))
    labels_print = marks.marked(run.root / "instructions" / "label.json")
    print_ = fingerprint("choose", select.VERSION, print_, model=labels_print)
    mark = run.root / "instructions" / "choose.json"
    if marks.marked(mark) == print_ and run.selected.complete() and run.selection.complete():
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
    files.forget(mark)
    fates, selected = 0, 0
    for shard, rows in by_shard.items():
        fates += run.selection.write(shard, rows)
        pool = [row for row in run.pool.read(shard) if row.id in kept]
        selected += run.selected.write(shard, [_with_fate(row, kept[row.id]) for row in pool])
    run.selection.expect(fates, len(chosen))
    run.selected.expect(selected, len(kept))
    marks.mark(mark, print_)
    context.log("selected", kept=len(kept), of=len(chosen))


def _with_fate(row: Instruction, fate: Selection) -> Instruction:
    return dataclasses.replace(
        row, category=fate.category, difficulty=fate.difficulty, split=fate.split
    )
