"""How do instructions and a seed model get into a run?"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from ste_jax.checkpoints.card import is_checkpoint, read_card
from ste_jax.config import identity
from ste_jax.config.identity import Identity, fingerprint
from ste_jax.config.schema import LabelledSetKnobs, PoolKnobs
from ste_jax.evaluation.readers import read_pairs
from ste_jax.model_io.import_weights import write_checkpoint
from ste_jax.model_io.open_model import source_fingerprint
from ste_jax.pipeline.context import SEED_STEP, Context
from ste_jax.records import Instruction, Pair, shard_of
from ste_jax.run import marks
from ste_jax.run.best import locate
from ste_jax.run.changes import RecipeStep
from ste_jax.run.layout import IterationDir, RunDir
from ste_jax.run.tables import Table
from ste_jax.stages import intake, judge_card
from ste_jax.system import files, hashing, preemption, shipped
from ste_jax.system.errors import RequestError, SteError, WorkError


def take_in(context: Context) -> None:
    """Read the instructions into the pool. Process 0 alone; the others wait."""
    context.processes.from_first("intake", lambda: _take_in(context))


def pool_mark(run: RunDir) -> epath.Path:
    """The mark that says what the pool was read from."""
    return run.root / "instructions" / "intake.mark.json"


def pool_print(knobs: PoolKnobs) -> Identity:
    """What the pool is read from, and how; the latter alone before the stroke."""
    source = fingerprint("source", 1, intake.source_identity(knobs))
    how = fingerprint(
        "intake", intake.VERSION, identity.of(knobs), named=identity.named("pool", knobs)
    )
    return Identity(f"{how}/{source}", {**how.made_of, "inputs": str(source)})


def _read_how(knobs: PoolKnobs, version: int) -> str:
    return fingerprint("intake", version, identity.of(knobs))


def is_taken_in(run: RunDir, knobs: PoolKnobs) -> bool:
    """Whether the pool is there as the knobs ask, or its sources are gone and cannot be read."""
    if not run.begun() or not run.pool.complete():
        return False
    made_under, there = pool_print(knobs), marks.marked(pool_mark(run))
    gone = intake.missing_files(knobs)
    like_it = tuple(_read_how(knobs, version) for version in (intake.VERSION, 1))
    if gone and (not there or there.startswith(like_it)):
        warnings.warn(f"going on with the pool that was taken in: {gone[0]} is gone", stacklevel=2)
        return True
    return there == made_under


def _take_in(context: Context) -> None:
    run, knobs = context.run, context.config.pool
    step = RecipeStep(title="intake", inputs="what lies in pool.path")
    if is_taken_in(run, knobs):
        context.is_done(step)
        return
    mark, made_under = pool_mark(run), pool_print(knobs)
    if not context.wants(step, lambda: "the pool is read", mark, made_under, (run.pool,)):
        return
    counts: dict[str, int] = {}
    set_aside: list[intake.Rejected] = []
    required, sample = intake.Filter(knobs.require), intake.Sample(knobs.sample)
    spill = epath.Path(f"{run.pool.directory}.partial-spill")
    try:
        rows = intake.collapse(intake.read_pool(knobs, required), counts, set_aside)
        _spill(spill, sample.passing(rows), run.pool.shards)
        if not counts["kept"]:
            raise nothing_to_take_in(knobs, required, set_aside)
        sample.count(counts)
        marks.mark(mark, marks.BEING_WRITTEN)  # from here on the old pool is replaced
        run.pool.expect(_write_pool(run.pool, spill, sample), counts["kept"])
    except OSError as error:
        raise WorkError(
            f"intake: could not write below {spill.parent}: {error.strerror or error}; make room "
            f"and run again"
        ) from error
    finally:
        files.remove(spill)
    if required.passed_over:
        counts["read"] += required.passed_over
        counts["filtered"] = required.passed_over
    lines = [json.dumps(vars(each), ensure_ascii=False) + "\n" for each in set_aside]
    files.write_whole(run.rejected, "".join(lines).encode())
    files.write_twice(run.manifest, {**run.read_manifest(), "intake": counts})
    marks.mark(mark, made_under)
    context.log("intake", **counts)


def nothing_to_take_in(
    knobs: PoolKnobs, required: intake.Filter, set_aside: list[intake.Rejected]
) -> SteError:
    """The error of a pool without an instruction."""
    if required.passed_over and not required.met:
        return RequestError(f"intake: {required.message()}")
    first = ""
    if set_aside:
        first = f"; the first: {set_aside[0].file}, line {set_aside[0].line}: {set_aside[0].reason}"
    return WorkError(f"intake: no instruction in {', '.join(knobs.path)} could be used{first}")


def _spill(spill: epath.Path, rows: Iterator[Instruction], shards: int) -> None:
    """Spread a stream over one directory per shard, in files that are each written once, since an
    object store cannot append."""
    files.remove(spill)
    waiting: dict[int, list[str]] = defaultdict(list)

    def flush(part: int) -> None:
        for shard, lines in waiting.items():
            place = spill / str(shard)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{part:08d}").write_text("".join(lines))
        waiting.clear()

    number = 0
    for number, row in enumerate(rows, start=1):
        waiting[shard_of(row.id, shards)].append(json.dumps(vars(row)) + "\n")
        if number % _ROWS_IN_MEMORY == 0:
            flush(number // _ROWS_IN_MEMORY)
        preemption.poll()
    flush(number // _ROWS_IN_MEMORY + 1)


def _write_pool(pool: Table[Instruction], spill: epath.Path, sample: intake.Sample) -> int:
    """Write the spilled rows of the sample as a table, with one shard in memory at a time. Returns
    how many rows there are."""
    total, drawn = 0, sample.ids()
    for shard in range(pool.shards):
        place = spill / str(shard)
        parts = sorted(place.iterdir()) if place.exists() else []
        made = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
        made = [row for row in made if not sample.size or row["id"] in drawn]
        total += pool.write(
            shard, [Instruction(**{**row, "messages": tuple(row["messages"])}) for row in made]
        )
    return total


_ROWS_IN_MEMORY = 4096


def take_in_labelled(context: Context) -> None:
    """Read the sets of labelled pairs that the judges are measured on. Process 0 alone.

    Raises:
      RequestError: a file that cannot be read.
    """
    context.processes.from_first("labelled", lambda: _take_in_labelled(context))


def _take_in_labelled(context: Context) -> None:
    for knobs in context.config.evaluate.sets:
        step = RecipeStep(title=f"labelled {knobs.name}", inputs=f"what lies in {knobs.data}")
        if is_read(context.run, knobs):
            context.is_done(step)
            continue
        table, mark = context.run.labelled(knobs.name), labelled_mark(context.run, knobs)
        made_under = labelled_print(knobs)
        wanted = context.wants(step, lambda: "the pairs are read", mark, made_under, (table,))
        by_shard: dict[int, list[Pair]] = {shard: [] for shard in range(table.shards)}
        pairs = read_labelled(knobs)
        for pair in pairs:
            by_shard[shard_of(pair.instruction_id, table.shards)].append(pair)
        if not wanted:
            context.read_anew[knobs.name] = by_shard
            context.changes.others.discard(step.title)  # which pairs are others is known
            continue
        marks.mark(mark, marks.BEING_WRITTEN)
        written = sum(table.write(shard, rows) for shard, rows in by_shard.items())
        table.expect(written, len(pairs))
        marks.mark(mark, made_under)


def labelled_mark(run: RunDir, knobs: LabelledSetKnobs) -> epath.Path:
    """The mark that says what a labelled set was read from."""
    return run.root / "labelled" / f"{knobs.name}.mark.json"


def labelled_print(knobs: LabelledSetKnobs) -> Identity:
    """What a labelled set is read from, and how; the latter alone before the stroke."""
    path = shipped.path_of(knobs.data)
    content = hashing.file_digest(path) if path.is_file() else ""
    source = fingerprint("labelled", 2, [knobs.benchmark, knobs.by], inputs=content)
    how = _labelled_how(knobs)
    return Identity(f"{how}/{source}", {**how.made_of, "inputs": str(source)})


def _labelled_how(knobs: LabelledSetKnobs) -> Identity:
    asked = [knobs.data, knobs.benchmark, knobs.by]
    group = f"evaluate.sets.{knobs.name}"
    named = identity.named(group, knobs, only=("data", "benchmark", "by"))
    return fingerprint("labelled", 2, asked, named=named)


def is_read(run: RunDir, knobs: LabelledSetKnobs) -> bool:
    """Whether a labelled set is there as the knobs ask, or its file is gone and cannot be read."""
    if not run.begun() or not run.labelled(knobs.name).complete():
        return False
    there = marks.marked(labelled_mark(run, knobs))
    if not shipped.path_of(knobs.data).exists() and there.startswith(f"{_labelled_how(knobs)}/"):
        warnings.warn(
            f"going on with the pairs of {knobs.name} that were read: {knobs.data} is gone",
            stacklevel=2,
        )
        return True
    return there == labelled_print(knobs)


def read_labelled(knobs: LabelledSetKnobs) -> list[Pair]:
    """The pairs of a labelled set.

    Raises:
      RequestError: the file cannot be read.
    """
    return list(read_pairs(knobs.benchmark, shipped.path_of(knobs.data), knobs.by))


def import_seed(context: Context) -> None:
    """Import the seed model as iteration 0's checkpoint.

    If its source is gone later, nothing is lost: the checkpoint holds all of it.
    """
    seed, knobs = context.run.iteration(0), context.config.finetune
    provenance = context.processes.from_first("seed", lambda: _to_import(context))
    if provenance is None:
        context.is_done(RecipeStep(title=SEED_STEP))
        return
    if context.changes.dry:
        return
    write_checkpoint(
        locate(context.config.model),
        seed.checkpoint,
        knobs.mesh,
        knobs.param_dtype,
        provenance,
    )


def _to_import(context: Context) -> dict[str, Any] | None:
    """The provenance of the seed that is to be read; None if it is there already."""
    config, seed = context.config, context.run.iteration(0)
    there = read_card(seed.checkpoint) if is_there(seed) else None
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
    if there is None:
        return provenance
    old, new = there["provenance"], json.loads(json.dumps(provenance))
    if old == new:
        return None
    changes, why = context.changes, _why_imported(old, new)
    if another := old.get("fingerprint") != new["fingerprint"]:
        changes.redone.add(SEED_STEP)
        changes.others.add(SEED_STEP)
    what = f"the model is imported again, since {why}"
    if changes.dry:
        changes.plan(SEED_STEP, "again", what, why=why, asks=another)
    else:
        changes.say(SEED_STEP, what)
    return provenance


def _why_imported(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    for key, knob in (("source", "model"), ("run", "name")):
        if old.get(key) != new[key]:
            return f"{knob} was {json.dumps(old.get(key))} and is {json.dumps(new[key])}"
    if old.get("fingerprint") != new["fingerprint"]:
        return f"finetune.param_dtype or what lies in {new['source']} has changed"
    return "its card says how a judge is asked, and that has changed"


def is_there(iteration: IterationDir) -> bool:
    """Whether the iteration's judge has its checkpoint."""
    return is_checkpoint(iteration.checkpoint)


def answers_of(context: Context, iteration: IterationDir, endpoint: str = "") -> str:
    """What decides an iteration's judge's answers besides the question: its parameters and what
    types it is asked in. Of an `endpoint` it is the model, wherever that is served."""
    if endpoint:
        knobs = context.config.endpoints[endpoint]
        unsent = [
            name for name in knobs.leave_out if name != "seed"
        ]  # a field left out that the request would not have had decides nothing
        without = f" without {', '.join(sorted(unsent))}" if unsent else ""
        return f"endpoint/{knobs.model}{without}"
    kinds = identity.of(context.config.decoding, only=("dtype", "weights"))
    return "/".join([model_of(iteration), *kinds.values()])


def model_of(iteration: IterationDir) -> str:
    """The fingerprint of an iteration's judge, from its checkpoint's card."""
    card = read_card(iteration.checkpoint)
    return str(card["provenance"]["fingerprint"])
