"""How do instructions and a seed model get into a run?"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from etils import epath

from ste_jax import checkpoints, files, judge_card, preemption, rundir, shipped
from ste_jax.context import Context
from ste_jax.errors import RequestError, SteError, WorkError
from ste_jax.evaluation.readers import read_pairs
from ste_jax.importing import write_checkpoint
from ste_jax.opening import locate, source_fingerprint
from ste_jax.records import Instruction, Pair, shard_of
from ste_jax.rundir import IterationDir, Table, fingerprint
from ste_jax.stages import intake
from ste_jax.strict import to_dict


def take_in(context: Context) -> None:
    """Read the instructions into the pool. Process 0 alone; the others wait."""
    context.processes.from_first("intake", lambda: _take_in(context))


def _take_in(context: Context) -> None:
    run, knobs = context.run, context.config.pool
    asked = fingerprint("intake", intake.VERSION, to_dict(knobs))
    print_ = f"{asked}/{fingerprint('source', 1, intake.source_identity(knobs))}"
    mark = run.root / "instructions" / "intake.json"
    there = rundir.marked(mark) if run.pool.complete() else ""
    if there == print_:
        return
    gone = intake.missing_files(knobs)
    if gone and there.startswith(asked):
        warnings.warn(f"going on with the pool that was taken in: {gone[0]} is gone", stacklevel=2)
        return
    counts: dict[str, int] = {}
    set_aside: list[intake.Rejected] = []
    spill = epath.Path(f"{run.pool.directory}.partial-spill")
    try:
        _spill(spill, intake.collapse(intake.read_pool(knobs), counts, set_aside), run.pool.shards)
        if not counts["kept"]:
            first = f"; the first: {set_aside[0]}" if set_aside else ""
            paths = ", ".join(knobs.path)
            raise WorkError(f"intake: no instruction in {paths} could be used{first}")
        files.remove(mark)  # from here on the old pool is no more
        run.pool.remove()
        _write_pool(run.pool, spill)
    except OSError as error:
        raise WorkError(
            f"intake: could not write below {spill.parent}: {error.strerror or error}; make room "
            f"and run again"
        ) from error
    finally:
        files.remove(spill)
    lines = [json.dumps(vars(each), ensure_ascii=False) + "\n" for each in set_aside]
    files.write_whole(run.rejected, "".join(lines).encode())
    manifest = files.read_json(run.manifest)
    files.write_json(run.manifest, {**manifest, "intake": counts})
    rundir.mark(mark, print_)
    context.log("intake", **counts)


def _spill(spill: epath.Path, rows: Iterator[Instruction], shards: int) -> None:
    """Spread a stream over one file per shard."""
    files.remove(spill)
    spill.mkdir(parents=True)
    waiting: dict[int, list[str]] = defaultdict(list)

    def flush() -> None:
        for shard, lines in waiting.items():
            with (spill / str(shard)).open("a") as file:
                file.writelines(lines)
        waiting.clear()

    for number, row in enumerate(rows, start=1):
        waiting[shard_of(row.id, shards)].append(json.dumps(vars(row)) + "\n")
        if number % _ROWS_IN_MEMORY == 0:
            flush()
        preemption.poll()
    flush()


def _write_pool(pool: Table[Instruction], spill: epath.Path) -> None:
    """The spilled rows as a table: one shard is in memory."""
    for shard in range(pool.shards):
        file = spill / str(shard)
        lines = file.read_text().splitlines() if file.exists() else []
        made = [json.loads(line) for line in lines]
        pool.write(
            shard, [Instruction(**{**row, "messages": tuple(row["messages"])}) for row in made]
        )


_ROWS_IN_MEMORY = 4096


def take_in_labelled(context: Context) -> None:
    """Read the sets of labelled pairs that the judges are measured on. Process 0 alone.

    Raises:
      RequestError: a file that cannot be read, or lacks a column that accuracy is told apart by.
    """
    context.processes.from_first("labelled", lambda: _take_in_labelled(context))


def _take_in_labelled(context: Context) -> None:
    for knobs in context.config.evaluate.sets:
        table = context.run.labelled(knobs.name)
        path = shipped.path_of(knobs.data)
        mark = context.run.root / "labelled" / f"{knobs.name}.json"
        content = hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else ""
        print_ = fingerprint("labelled", 1, [knobs.benchmark, knobs.by], inputs=content)
        if table.complete() and rundir.marked(mark) == print_:
            continue
        by_shard: dict[int, list[Pair]] = {shard: [] for shard in range(table.shards)}
        for pair in read_pairs(knobs.benchmark, path):
            columns = json.loads(pair.extra or "{}")
            missing = [name for name in knobs.by if name not in columns]
            if missing:
                raise RequestError(
                    f"evaluate.sets: {knobs.data} has a row without the column {missing[0]!r}, by "
                    f"which {knobs.name} is to be told apart"
                )
            by_shard[shard_of(pair.instruction_id, table.shards)].append(pair)
        files.remove(mark)
        for shard, rows in by_shard.items():
            table.write(shard, rows)
        rundir.mark(mark, print_)


def import_seed(context: Context) -> None:
    """The seed as iteration 0's checkpoint.

    A source that is gone since is no loss: the checkpoint holds all of it.
    """
    seed, knobs = context.run.iteration(0), context.config.finetune
    provenance = context.processes.from_first("seed", lambda: _to_import(context))
    if provenance is None:
        return
    write_checkpoint(
        locate(context.config.model),
        seed.checkpoint,
        knobs.mesh,
        knobs.param_dtype,
        provenance,
        context.processes.barrier,
    )


def _to_import(context: Context) -> dict[str, Any] | None:
    """The provenance of the seed that is to be read; None if it is there already."""
    config, seed = context.config, context.run.iteration(0)
    there = checkpoints.read_card(seed.checkpoint) if is_there(seed) else None
    try:
        found = locate(config.model)
    except SteError as error:
        if there is None or there["provenance"]["source"] != config.model:
            raise
        warnings.warn(f"going on with the seed in {seed.checkpoint}: {error}", stacklevel=2)
        return None
    model = source_fingerprint(found)
    provenance: dict[str, Any] = {
        "run": config.name,
        "iteration": 0,
        "parent": None,
        "source": config.model,
        "fingerprint": fingerprint("seed", 1, config.finetune.param_dtype, model=model),
        "judge": judge_card.to_dict(judge_card.of_config(config)),
    }
    same = there is not None and there["provenance"] == json.loads(json.dumps(provenance))
    return None if same else provenance


def is_there(iteration: IterationDir) -> bool:
    """Whether the iteration's judge has its checkpoint."""
    return checkpoints.is_checkpoint(iteration.checkpoint)


def answers_of(context: Context, iteration: IterationDir, endpoint: str = "") -> str:
    """What decides an iteration's judge's answers besides the question: its parameters and what
    types it is asked in. Of an `endpoint` it is the model, wherever that is served."""
    if endpoint:
        return f"endpoint/{context.config.endpoints[endpoint].model}"
    decoding = context.config.decoding
    weights = "" if decoding.weights == "dtype" else f"/{decoding.weights}"
    return f"{model_of(iteration)}/{decoding.dtype}{weights}"


def model_of(iteration: IterationDir) -> str:
    """The fingerprint of an iteration's judge, from its checkpoint's card."""
    card = checkpoints.read_card(iteration.checkpoint)
    return str(card["provenance"]["fingerprint"])
