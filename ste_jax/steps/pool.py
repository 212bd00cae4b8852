"""How do instructions and a seed model get into a run?"""

from __future__ import annotations

import json
from collections.abc import Iterator

from etils import epath

from ste_jax import checkpoints, files, judge_card, preemption, rundir
from ste_jax.context import Context
from ste_jax.errors import WorkError
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


def import_seed(context: Context) -> str:
    """The seed as iteration 0's checkpoint; returns its fingerprint."""
    seed = context.run.iteration(0)
    found = locate(context.config.model)
    knobs = context.config.finetune
    print_ = fingerprint("seed", 1, knobs.param_dtype, model=source_fingerprint(found))
    if checkpoints.is_checkpoint(seed.checkpoint) and model_of(seed) == print_:
        return print_
    opened = open_model(found, knobs.mesh, dtype=knobs.dtype, param_dtype=knobs.param_dtype)
    checkpoints.save_checkpoint(
        seed.checkpoint,
        opened.model,
        tokenizer=opened.tokenizer,
        provenance={
            "run": context.config.name,
            "iteration": 0,
            "parent": None,
            "source": context.config.model,
            "fingerprint": print_,
            "judge": judge_card.to_dict(judge_card.of_config(context.config)),
        },
        barrier=context.processes.barrier,
    )
    return print_


def model_of(iteration: IterationDir) -> str:
    """The fingerprint of an iteration's judge, from its checkpoint's card."""
    card = checkpoints.read_card(iteration.checkpoint)
    return str(card["provenance"]["fingerprint"])
