"""How are the judgments chosen that an iteration's SFT learns?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from ste_jax.checkpoints.card import TOKENIZER
from ste_jax.config import identity
from ste_jax.config.identity import fingerprint
from ste_jax.pipeline.context import Context
from ste_jax.run import changes, marks
from ste_jax.run.changes import RecipeStep
from ste_jax.run.layout import IterationDir
from ste_jax.run.tables import Table, row_ids
from ste_jax.stages import curate as curation
from ste_jax.stages.ends import Cut
from ste_jax.system import files
from ste_jax.system.errors import WorkError
from ste_jax.tasks import task_named
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import Tokenizer


def curate(context: Context, iteration: int) -> None:
    """Choose the judgments of the last iteration's judge that SFT trains on. Process 0 chooses; the
    others wait."""
    context.processes.from_first("curate", lambda: _curate(context, iteration))


def _curate(context: Context, iteration: int) -> None:
    here, knobs = context.run.iteration(iteration), context.config.curate
    inputs = row_ids([here.prompts, here.judgments])
    named = identity.named("curate", knobs)
    made_under = fingerprint(
        "curate", curation.VERSION, identity.of(knobs), inputs=inputs, named=named
    )
    mark = here.curate_mark
    step = RecipeStep(title=f"curate {iteration}", takes=(f"annotate {iteration}",), inputs=SAID)
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
    context.log("curated", iteration=iteration, kept=chosen.kept_by_class, dropped=chosen.dropped)


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
