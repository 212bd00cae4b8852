"""How do instructions and a seed model get into a run?"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator

from etils import epath

from ste_jax import checkpoints, files, judge_card, preemption, rundir
from ste_jax.context import Context
from ste_jax.errors import SteError, WorkError
from ste_jax.opening import locate, open_model, source_fingerprint
from ste_jax.records import Instruction, shard_of
from ste_jax.rundir import IterationDir, Table, fingerprint
from ste_jax.stages import intake
from ste_jax.strict import to_dict


def take_in(context: Context) -> None:
    """Read the instructions into the pool. Process 0 alone; the others wait."""
    context.processes.from_first("intake", lambda: _take_in(context))


def _take_in(context: Context) -> None:
    run, knobs = context.run, context.config.pool
    print_ = fingerprint(
        "intake", intake.VERSION, to_dict(knobs), inputs=intake.source_identity(knobs)
    )
    mark = run.root / "instructions" / "intake.json"
    if rundir.marked(mark) == print_ and run.pool.complete():
        return
    files.remove(mark)
    run.pool.remove()
    counts: dict[str, int] = {}
    set_aside: list[intake.Rejected] = []
    rows = intake.collapse(intake.read_pool(knobs), counts, set_aside)
    _write_pool(run.pool, rows)
    if not counts["kept"]:
        first = f"; the first: {set_aside[0]}" if set_aside else ""
        run.pool.remove()
        raise WorkError(f"intake: no instruction in {', '.join(knobs.path)} could be used{first}")
    lines = [json.dumps(vars(each), ensure_ascii=False) + "\n" for each in set_aside]
    files.write_whole(run.rejected, "".join(lines).encode())
    manifest = files.read_json(run.manifest)
    files.write_json(run.manifest, {**manifest, "intake": counts})
    rundir.mark(mark, print_)
    context.log("intake", **counts)


def _write_pool(pool: Table[Instruction], rows: Iterator[Instruction]) -> None:
    """Spread a stream over the shards through one spill file per shard: one shard is in memory."""
    spill = epath.Path(f"{pool.directory}.partial-spill")
    files.remove(spill)
    spill.mkdir(parents=True)
    handles = [(spill / str(shard)).open("w") for shard in range(pool.shards)]
    try:
        for row in rows:
            handles[shard_of(row.id, pool.shards)].write(json.dumps(vars(row)) + "\n")
            preemption.poll()
    finally:
        for handle in handles:
            handle.close()
    for shard in range(pool.shards):
        lines = (spill / str(shard)).read_text().splitlines()
        made = [json.loads(line) for line in lines]
        pool.write(
            shard, [Instruction(**{**row, "messages": tuple(row["messages"])}) for row in made]
        )
    files.remove(spill)


def import_seed(context: Context) -> None:
    """The seed as iteration 0's checkpoint.

    A source that is gone since is no loss: the checkpoint holds all of it.
    """
    config, seed = context.config, context.run.iteration(0)
    there = checkpoints.read_card(seed.checkpoint) if is_there(seed) else None
    try:
        found = locate(config.model)
    except SteError as error:
        if there is None or there["provenance"]["source"] != config.model:
            raise
        warnings.warn(f"going on with the seed in {seed.checkpoint}: {error}", stacklevel=2)
        return
    knobs = config.finetune
    provenance = {
        "run": config.name,
        "iteration": 0,
        "parent": None,
        "source": config.model,
        "fingerprint": fingerprint("seed", 1, knobs.param_dtype, model=source_fingerprint(found)),
        "judge": judge_card.to_dict(judge_card.of_config(config)),
    }
    if there is not None and there["provenance"] == json.loads(json.dumps(provenance)):
        return
    opened = open_model(found, knobs.mesh, dtype=knobs.dtype, param_dtype=knobs.param_dtype)
    checkpoints.save_checkpoint(
        seed.checkpoint,
        opened.model,
        tokenizer=opened.tokenizer,
        provenance=provenance,
        barrier=context.processes.barrier,
    )


def is_there(iteration: IterationDir) -> bool:
    """Whether the iteration's judge has its checkpoint."""
    return checkpoints.is_checkpoint(iteration.checkpoint)


def answers_of(context: Context, iteration: IterationDir) -> str:
    """What decides an iteration's judge's answers besides the question: its parameters and the type
    that it is asked in."""
    return f"{model_of(iteration)}/{context.config.decoding.dtype}"


def model_of(iteration: IterationDir) -> str:
    """The fingerprint of an iteration's judge, from its checkpoint's card."""
    card = checkpoints.read_card(iteration.checkpoint)
    return str(card["provenance"]["fingerprint"])
