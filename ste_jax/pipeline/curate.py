"""How is what an iteration trains on chosen?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ste_jax.checkpoints.checkpoint import TOKENIZER
from ste_jax.config.from_plain import to_dict
from ste_jax.errors import WorkError
from ste_jax.pipeline.annotate import dpo_asks_sft, dpo_wants_more
from ste_jax.pipeline.context import Context
from ste_jax.records import Judgment
from ste_jax.run import layout, marks
from ste_jax.run.layout import IterationDir, Table, fingerprint
from ste_jax.stages import curate as curation
from ste_jax.stages.ends import Cut
from ste_jax.system import files
from ste_jax.tokenization.tokenizer import Tokenizer, load_tokenizer


def curate(context: Context, iteration: int) -> None:
    """Choose, of what the last iteration's judge said, what the stages of fine-tuning train on.
    Process 0 alone; the others wait."""
    stages = context.config.finetune.stages
    if "sft" in stages:
        context.processes.from_first("curate", lambda: _curate(context, iteration))
    if "dpo" in stages and not dpo_asks_sft(context.config):
        here = context.run.iteration(iteration)
        prefer(context, iteration, here.judgments)


def prefer(context: Context, iteration: int, judgments: Table[Judgment]) -> None:
    """Choose the pairs of `judgments` that DPO trains on. Process 0 alone; the others wait."""
    context.processes.from_first("prefer", lambda: _prefer(context, iteration, judgments))


def _curate(context: Context, iteration: int) -> None:
    here, knobs = context.run.iteration(iteration), context.config.curate
    inputs = layout.row_ids([here.prompts, here.judgments])
    print_ = fingerprint("curate", curation.VERSION, to_dict(knobs), inputs=inputs)
    mark = here.curate_mark
    if marks.marked(mark) == print_ and here.training.complete() and here.curation.exists():
        return
    cut = _cut_of(context)
    chosen = curation.curate(here.prompts.rows(), here.judgments.rows(), knobs, cut)
    if min(chosen.kept_letters.values()) == 0:
        raise WorkError(_nothing_to_train_on(here, chosen))
    files.forget(mark)
    written = 0
    for shard in range(here.training.shards):
        examples = curation.training_examples(
            here.prompts.read(shard),
            here.judgments.read(shard),
            lambda judgment: chosen.kept.get(judgment.prompt_id) == judgment.id,
            cut,
        )
        written += here.training.write(shard, examples)
    here.training.expect(written, len(chosen.kept))
    files.write_json(here.curation, {"kept": chosen.kept_letters, "dropped": chosen.dropped})
    marks.mark(mark, print_)
    context.log("curated", iteration=iteration, kept=chosen.kept_letters, dropped=chosen.dropped)


def _cut_of(context: Context) -> Cut:
    """How token ids are cut: by the tokenizer of the seed, which all judges of a run share. It is
    read when something is to be cut."""
    tokenizers: list[Tokenizer] = []

    def cut(ids: Sequence[int], text: str) -> tuple[int, ...] | None:
        if not tokenizers:
            tokenizers.append(load_tokenizer(str(context.run.iteration(0).checkpoint / TOKENIZER)))
        return beginning_of(tokenizers[0], ids, text)

    return cut


def beginning_of(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> tuple[int, ...] | None:
    """The shortest beginning of `ids` that says `text`, but for white space at its end; None if
    there is none. A beginning's text only grows, so this bisects."""
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
    for row in here.judgments.rows():
        judgments["drawn"] += 1
        judgments["parsed"] += row.failure is None
        judgments["forced"] += row.forced
        judgments["A" if row.verdict == "A" else "B" if row.verdict == "B" else "none"] += 1
    return (
        f"curate: iteration {here.index} has nothing to train on, kept {chosen.kept_letters}, "
        f"dropped {chosen.dropped}; of {judgments['drawn']} judgments {judgments['parsed']} parsed "
        f"by themselves and {judgments['forced']} were forced, with verdicts A {judgments['A']}, "
        f"B {judgments['B']}, none {judgments['none']}; see roles.judge, judge.force_verdict and "
        f"annotate.samples"
    )


def _prefer(context: Context, iteration: int, judgments: Table[Judgment]) -> None:
    here, config = context.run.iteration(iteration), context.config
    knobs = config.finetune.dpo
    read = {"pairs_per_prompt": knobs.pairs_per_prompt, "negatives": list(knobs.negatives)}
    more = dpo_wants_more(config)
    tables: list[Table[Any]] = [here.prompts, judgments]
    inputs = layout.row_ids(tables + [here.more_judgments] if more else tables)
    told = {**read, "balance": config.curate.balance}
    print_ = fingerprint("prefer", curation.PREFER_VERSION, told, inputs=inputs)
    mark = here.prefer_mark
    if marks.marked(mark) == print_ and here.preferences.complete() and here.preferring.exists():
        return
    cut = _cut_of(context)
    chosen = curation.prefer(
        here.prompts.rows(),
        judgments.rows(),
        knobs,
        balance=config.curate.balance,
        more=here.more_judgments.rows() if more else (),
        cut=cut,
    )
    if min(chosen.kept_letters.values()) == 0:
        raise WorkError(
            f"prefer: iteration {here.index} has no pairs of judgments for DPO: kept "
            f"{chosen.kept_letters}, prompts without a pair {chosen.prompts_dropped}, dropped "
            f"{chosen.pairs_dropped}; draw more samples (annotate.samples, or "
            "finetune.dpo.more_samples where none failed), see finetune.dpo.negatives, or leave "
            "dpo out of finetune.stages"
        )
    files.forget(mark)
    drawn_hotter, written = 0, 0
    for shard in range(here.preferences.shards):
        hotter = here.more_judgments.read(shard) if more else []
        drawn = judgments.read(shard) + hotter
        rows = curation.preference_examples(here.prompts.read(shard), drawn, chosen.kept, cut)
        written += here.preferences.write(shard, rows)
        ids = {judgment.id for judgment in hotter}
        drawn_hotter += sum(row.rejected_judgment_id in ids for row in rows)
    here.preferences.expect(written, sum(chosen.kept_letters.values()))
    counts = {
        "kept": chosen.kept_letters,
        "negatives": chosen.negatives,
        "prompts": len(chosen.kept),
        "prompts_dropped": chosen.prompts_dropped,
        "pairs_dropped": chosen.pairs_dropped,
        **({"drawn_hotter": drawn_hotter} if more else {}),
    }
    files.write_json(here.preferring, counts)
    marks.mark(mark, print_)
    context.log("preferred", iteration=iteration, **counts)
