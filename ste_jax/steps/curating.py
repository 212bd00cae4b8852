"""How is what an iteration trains on chosen?"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ste_jax import files, rundir
from ste_jax.context import Context
from ste_jax.errors import WorkError
from ste_jax.rundir import IterationDir, Table, fingerprint
from ste_jax.stages import curate as curation
from ste_jax.steps.judging import dpo_wants_more
from ste_jax.strict import to_dict


def curate(context: Context, iteration: int) -> None:
    """Choose the judgments that the stages of fine-tuning train on. Process 0 alone; the others
    wait."""
    if "sft" in context.config.finetune.stages:
        context.processes.from_first("curate", lambda: _curate(context, iteration))
    if "dpo" in context.config.finetune.stages:
        context.processes.from_first("prefer", lambda: _prefer(context, iteration))


def _curate(context: Context, iteration: int) -> None:
    here, knobs = context.run.iteration(iteration), context.config.curate
    inputs = rundir.row_ids([here.prompts, here.judgments])
    print_ = fingerprint("curate", curation.VERSION, to_dict(knobs), inputs=inputs)
    mark = here.curate_mark
    if rundir.marked(mark) == print_ and here.training.complete() and here.curation.exists():
        return
    files.remove(mark)
    chosen = curation.curate(here.prompts.rows(), here.judgments.rows(), knobs)
    for shard in range(here.training.shards):
        examples = curation.training_examples(
            here.prompts.read(shard),
            here.judgments.read(shard),
            lambda judgment: chosen.kept.get(judgment.prompt_id) == judgment.id,
        )
        here.training.write(shard, examples)
    files.write_json(here.curation, {"kept": chosen.kept_letters, "dropped": chosen.dropped})
    if min(chosen.kept_letters.values()) == 0:
        raise WorkError(_nothing_to_train_on(here, chosen))
    rundir.mark(mark, print_)
    context.log("curated", iteration=iteration, kept=chosen.kept_letters, dropped=chosen.dropped)


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


def _prefer(context: Context, iteration: int) -> None:
    here, config = context.run.iteration(iteration), context.config
    knobs = config.finetune.dpo
    read = {"pairs_per_prompt": knobs.pairs_per_prompt, "negatives": list(knobs.negatives)}
    more = dpo_wants_more(config)
    tables: list[Table[Any]] = [here.prompts, here.judgments]
    inputs = rundir.row_ids(tables + [here.more_judgments] if more else tables)
    told = {**read, "balance": config.curate.balance}
    print_ = fingerprint("prefer", curation.PREFER_VERSION, told, inputs=inputs)
    mark = here.prefer_mark
    if rundir.marked(mark) == print_ and here.preferences.complete() and here.preferring.exists():
        return
    files.remove(mark)
    chosen = curation.prefer(
        here.prompts.rows(),
        here.judgments.rows(),
        knobs,
        balance=config.curate.balance,
        more=here.more_judgments.rows() if more else (),
    )
    drawn_hotter = 0
    for shard in range(here.preferences.shards):
        hotter = here.more_judgments.read(shard) if more else []
        judgments = here.judgments.read(shard) + hotter
        rows = curation.preference_examples(here.prompts.read(shard), judgments, chosen.kept)
        here.preferences.write(shard, rows)
        ids = {judgment.id for judgment in hotter}
        drawn_hotter += sum(row.rejected_judgment_id in ids for row in rows)
    counts = {
        "kept": chosen.kept_letters,
        "negatives": chosen.negatives,
        "prompts": len(chosen.kept),
        "prompts_dropped": chosen.prompts_dropped,
        "pairs_dropped": chosen.pairs_dropped,
        **({"drawn_hotter": drawn_hotter} if more else {}),
    }
    files.write_json(here.preferring, counts)
    if min(chosen.kept_letters.values()) == 0:
        raise WorkError(
            f"prefer: iteration {here.index} has no pairs of judgments for DPO: kept "
            f"{chosen.kept_letters}, prompts without a pair {chosen.prompts_dropped}, dropped "
            f"{chosen.pairs_dropped}; draw more samples (annotate.samples, or "
            "finetune.dpo.more_samples where none failed), see finetune.dpo.negatives, or leave "
            "dpo out of finetune.stages"
        )
    rundir.mark(mark, print_)
    context.log("preferred", iteration=iteration, **counts)
