"""How are the judgments chosen that an iteration's SFT learns?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from ste_jax.checkpoints.card import TOKENIZER
from ste_jax.config import identity
from ste_jax.config.identity import fingerprint
from ste_jax.pipeline.context import Context, shown_as
from ste_jax.reporting.funnel import reasons
from ste_jax.run import changes, marks
from ste_jax.run.changes import RecipeStep
from ste_jax.run.layout import IterationDir
from ste_jax.run.tables import Table
from ste_jax.stages import curate as curation
from ste_jax.stages.ends import Cut
from ste_jax.system import files, progress
from ste_jax.system.errors import WorkError
from ste_jax.system.progress_lines import Figure
from ste_jax.tasks import task_named
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import Tokenizer

FEW_JUDGMENTS = 20
"""Fewer judgments to train on than this are said to be few."""


def curate(context: Context, iteration: int) -> None:
    """Choose the judgments of the last iteration's judge that SFT trains on. Process 0 chooses; the
    others wait."""
    context.processes.from_first("curate", lambda: _curate(context, iteration))


def _curate(context: Context, iteration: int) -> None:
    here, knobs = context.run.iteration(iteration), context.config.curate
    step = RecipeStep(title=f"curate {iteration}", takes=(f"annotate {iteration}",), inputs=SAID)
    inputs = context.input_ids([here.prompts, here.judgments], step)
    named = identity.named("curate", knobs)
    made_under = fingerprint(
        "curate", curation.VERSION, identity.of(knobs), inputs=inputs, named=named
    )
    mark = here.curate_mark
    what = partial(counted, "the training set", here.training)
    if not context.wants(step, what, mark, made_under, (here.training,), (here.curation,)):
        return
    cut = cut_of(context)
    task = task_named(context.config.judge.task)
    chosen = curation.curate(task, here.prompts.rows(), here.judgments.rows(), knobs, cut)
    if not curation.can_train(task, chosen.kept_by_class):
        raise WorkError(_nothing_to_train_on(here, chosen))
    marks.forget(mark)
    written = 0
    for shard in range(here.training.shards):
        examples = curation.training_examples(
            task,
            here.prompts.read(shard),
            here.judgments.read(shard),
            lambda judgment: chosen.kept.get(judgment.prompt_id) == judgment.id,
            cut,
        )
        written += here.training.write(shard, examples)
    here.training.expect(written, len(chosen.kept))
    files.write_json(here.curation, {"kept": chosen.kept_by_class, "dropped": chosen.dropped})
    marks.mark(mark, made_under)
    progress.found(shown_as(context, iteration, "curate"), _of_all(chosen))
    if len(chosen.kept) < FEW_JUDGMENTS:
        progress.warn(
            f"iteration {iteration} trains on {len(chosen.kept)} judgments alone, of which little "
            "can be learnt: raise select.train or annotate.samples, or give it more data"
        )
    context.log("curated", iteration=iteration, kept=chosen.kept_by_class, dropped=chosen.dropped)


def _of_all(chosen: curation.Curation) -> list[Figure]:
    """How many questions have a judgment to train on, and why others have none, to be shown."""
    kept, lost = sum(chosen.kept_by_class.values()), sum(chosen.dropped.values())
    why = f" ({reasons(chosen.dropped)})" if lost else ""
    text = f"{kept:,} of {kept + lost:,} questions have a judgment to train on{why}"
    return [Figure("kept", kept, text), Figure("of", kept + lost, "")]


def counted(name: str, table: Table[Any]) -> str:
    """A sentence that a table is chosen, with the number of its rows if it is there."""
    try:
        of = f" of {changes.counted(table.count(), 'rows')}" if table.complete() else ""
    except WorkError:  # it is damaged, and is about to go
        of = ""
    return f"{name}{of} is chosen"


SAID = "what the judge said"


def cut_of(context: Context) -> Cut:
    """A `Cut` by the tokenizer of the seed, which all judges of a run share. It is read only when
    something is to be cut."""
    tokenizers: list[Tokenizer] = []

    def cut(ids: Sequence[int], text: str) -> tuple[int, ...] | None:
        if not tokenizers:
            tokenizers.append(load_tokenizer(str(context.run.iteration(0).checkpoint / TOKENIZER)))
        return beginning_of(tokenizers[0], ids, text)

    return cut


def beginning_of(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> tuple[int, ...] | None:
    """The shortest beginning of `ids` whose text is `text`, but for white space at its end; None if
    there is none. It is found by bisection, since a longer beginning never has a shorter text."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(ids[:middle])) < len(text):
            low = middle + 1
        else:
            high = middle
    said = tokenizer.decode(ids[:low])
    return tuple(ids[:low]) if said.rstrip() == text.rstrip() else None


def _nothing_to_train_on(here: IterationDir, chosen: curation.Curation) -> str:
    judgments: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    for row in here.judgments.rows():
        judgments["drawn"] += 1
        judgments["parsed"] += row.failure is None
        judgments["forced"] += row.forced
        verdicts[row.verdict or "none"] += 1
    said = ", ".join(f"{verdict} {verdicts[verdict]}" for verdict in sorted(verdicts))
    return (
        f"curate: iteration {here.index} has nothing to train on, kept {chosen.kept_by_class}, "
        f"dropped {chosen.dropped}; of {judgments['drawn']} judgments {judgments['parsed']} parsed "
        f"by themselves and {judgments['forced']} were forced, with verdicts {said}; see "
        f"roles.judge, judge.force_verdict and annotate.samples"
    )
