"""How is an iteration's training set chosen?"""

from __future__ import annotations

from collections import Counter

from ste_jax import files, rundir
from ste_jax.context import Context
from ste_jax.errors import WorkError
from ste_jax.rundir import IterationDir, fingerprint
from ste_jax.stages import curate as curation
from ste_jax.strict import to_dict


def curate(context: Context, iteration: int) -> None:
    """Choose the judgments to train on. Process 0 alone; the others wait."""
    context.processes.from_first("curate", lambda: _curate(context, iteration))


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
