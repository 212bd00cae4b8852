"""What does every step of a run need?

The config, the run's directory, the processes, the log, and a generator for the model that is asked
at the moment: loaded when it is first needed, so that a run with nothing left to do loads none.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from etils import epath

from ste_jax.config import fitting, identity
from ste_jax.config.from_plain import to_dict
from ste_jax.config.identity import Identity, fingerprint
from ste_jax.config.schema import Config
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.generation import Generator, Usage
from ste_jax.model_io.open_model import open_generator
from ste_jax.model_io.sources import resolve
from ste_jax.parallel.processes import Processes
from ste_jax.pipeline.manifest import manifest_of
from ste_jax.records import Pair
from ste_jax.run import marks
from ste_jax.run.changes import TEXT_OF, Changes, RecipeStep
from ste_jax.run.layout import IterationDir, RunDir
from ste_jax.run.metrics_log import MetricsLog
from ste_jax.run.tables import Table, row_ids
from ste_jax.stages.roles import template_of
from ste_jax.system import files
from ste_jax.system.errors import WorkError
from ste_jax.tasks import task_named

Read = TypeVar("Read")
SEED_STEP = "seed model"
"""The title of the step that imports the seed."""


@dataclass
class Context:
    """A run that is being worked on."""

    config: Config
    run: RunDir
    processes: Processes
    log: Callable[..., None]
    changes: Changes = field(default_factory=Changes)
    taken_over: dict[IterationDir, IterationDir] = field(default_factory=dict)
    """In a dry pass: where the judges still are that a start would move, by where it would."""
    read_anew: dict[str, dict[int, list[Pair]]] = field(default_factory=dict)
    """In a dry pass: the labelled pairs that a start would read again, by set and shard."""
    _asked: tuple[str, LocalGenerator] | None = field(default=None, init=False)

    def generator(self, checkpoint: epath.Path) -> LocalGenerator:
        """The model of a checkpoint, read back from Orbax onto this process's devices.

        One model is held at a time.
        """
        if self._asked is None or self._asked[0] != str(checkpoint):
            self.forget_model()
            self._asked = (
                str(checkpoint),
                open_generator(resolve(str(checkpoint)), self.config.decoding),
            )
        return self._asked[1]

    def wants(
        self,
        step: RecipeStep,
        what: Callable[[], str],
        mark: epath.Path,
        made_under: Identity,
        tables: Sequence[Table[Any]] = (),
        outputs: Sequence[epath.Path] = (),
    ) -> bool:
        """Whether a step of process 0, which asks no model, is still to be done. If its output is
        made again, a line in the words of `what` says so first. In a dry pass it is only said what
        would be done, and the result is false.
        """
        had = all(table.complete() for table in tables) and all(o.exists() for o in outputs)
        there = marks.marked(mark)
        if self.changes.dry:
            self.changes.foretell(step, what(), there, made_under, had, by_model=False)
            return False
        if marks.is_done(mark, made_under, tables, outputs):
            return False
        if had and there != made_under:
            self.changes.again(step, f"{what()} again", there, made_under)
        self.changes.redone.add(step.title)
        return True

    def is_done(self, step: RecipeStep) -> None:
        """Say, in a dry pass, that nothing is to be done for a step."""
        if self.changes.dry:
            self.changes.plan(step.title, "done")

    def judge_in(self, place: IterationDir) -> IterationDir:
        """The directory that holds the judge of a place; in a dry pass one that would be moved
        there is still elsewhere."""
        return self.taken_over.get(place, place)

    def read_for(self, step: RecipeStep, read: Callable[[], Read], unknown: Read) -> Read:
        """What `read` gives of the rows that a step is made of. In a dry pass it is `unknown` where
        they cannot be read and another step makes them anew."""
        try:
            return read()
        except WorkError:
            if self.changes.dry and self.changes.follows(step):
                return unknown
            raise

    def input_ids(self, tables: Sequence[Table[Any]], step: RecipeStep) -> str:
        """A hash over the ids of the rows that a step is made of (see `read_for`)."""
        return self.read_for(step, lambda: row_ids(tables), "")

    def labelled(self, name: str) -> Callable[[int], list[Pair]]:
        """A function that gives the pairs of a shard of a labelled set."""
        if name in self.read_anew:
            return self.read_anew[name].__getitem__
        return self.run.labelled(name).read

    def forget_model(self) -> None:
        """Free the memory of the model."""
        self._asked = None

    def meter(self, stage: str, iteration: int, generator: Generator) -> Callable[[int], None]:
        """A function to be called after each piece of work with its number of rows; it logs what
        the piece cost."""
        before = dataclasses.replace(generator.usage)
        started = time.monotonic()

        def note(rows: int) -> None:
            nonlocal before, started
            now = dataclasses.replace(generator.usage)
            self.log(
                "work",
                stage=stage,
                iteration=iteration,
                rows=rows,
                seconds=round(time.monotonic() - started, 3),
                **_difference(now, before),
            )
            before, started = now, time.monotonic()

        return note


def _difference(now: Usage, before: Usage) -> dict[str, Any]:
    """The difference of two readings of a generator's counters, without their seconds."""
    kept = ["prompt_tokens", "cached_prompt_tokens", "new_tokens", "samples", "flops"]
    kept += ["slot_steps", "busy_slot_steps"]
    found = {name: getattr(now, name) - getattr(before, name) for name in kept}
    return {**found, "prefill_seconds": round(now.prefill_seconds - before.prefill_seconds, 3)}


def shown_as(context: Context, iteration: int, what: str) -> str:
    """What an iteration's work is called while it goes on: `iteration 2 of 3: annotate`."""
    return f"iteration {iteration} of {context.config.iterations}: {what}"


def maker_of(config: Config, place: IterationDir) -> str:
    """The title of the step that makes the judge in a directory."""
    if place.index == 0:
        return SEED_STEP
    last = place.root.parent.name == "iterations"
    return f"{config.finetune.stages[-1] if last else place.root.name} {place.index}"


def named_role(config: Config, name: str) -> dict[str, Any]:
    """All knobs that decide how a role is asked, by dotted name (see `identity.named`)."""
    knobs, group = getattr(config.roles, name), f"roles.{name}"
    said = template_of(name, knobs, task_named(config.judge.task)).fingerprint()
    text = {f"{TEXT_OF}{group}.template": fingerprint("text", 1, said)}
    return {"seed": config.seed, **identity.named(group, knobs), **text}


def named_decoding(config: Config, endpoint: str = "") -> dict[str, Any]:
    """The knobs of decoding that decide answers, by dotted name; none for an `endpoint`."""
    if endpoint:
        return {}
    return identity.named("decoding", config.decoding, only=("dtype", "weights"))


def open_run(
    config: Config,
    asked: Config,
    root: epath.Path,
    processes: Processes,
    *,
    new_shapes: bool = False,
) -> Context:
    """Begin a run, or take one up where it was left.

    What is fixed at the beginning (the number of shards, the shapes of the decoding programs)
    lies in the run's manifest. `config` is the one that was `asked` for with nothing left open (see
    `fit_config`).

    Raises:
      RequestError: the directory holds something that is not a run, or a run of another number of
        shards or, without `new_shapes`, of other shapes.
    """
    run = RunDir(root)

    def begin() -> dict[str, Any]:
        before = run.plain_config()
        manifest = manifest_of(config, run, new_shapes)
        manifest["caps"] = {**manifest["caps"], **fitting.open_caps(asked, config)}
        files.sweep_partials(root)
        files.write_twice(run.manifest, manifest)
        text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        files.write_whole(run.config, text.encode())
        return before

    before = processes.from_first("open", begin)
    name = "metrics.jsonl" if processes.first else f"metrics-{processes.index:05d}.jsonl"
    log = MetricsLog(root / name)
    return Context(
        config=config,
        run=run,
        processes=processes,
        log=log,
        changes=Changes(before=before, log=log),
    )
