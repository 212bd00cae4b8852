"""What is the recipe?

`run` is all of it, top to bottom. Every step looks first at what is there: a step whose output is
whole and was made under the same knobs, by the same model, from the same rows, does nothing. So
running again is resuming, and a changed knob redoes what it touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from etils import epath

from ste_jax.config.load import load_config
from ste_jax.config.schema import Config
from ste_jax.parallel.processes import Processes
from ste_jax.pipeline.annotate import annotate
from ste_jax.pipeline.context import Context, config_of, open_run
from ste_jax.pipeline.evaluate import check_sets, evaluate
from ste_jax.pipeline.finetune import finetune_iteration
from ste_jax.pipeline.intake import import_seed, is_there, take_in, take_in_labelled
from ste_jax.pipeline.manifest import manifest_of
from ste_jax.pipeline.pair import make_pairs
from ste_jax.pipeline.phases import PHASES, check_batches, check_phases, phase_reports, phases_of
from ste_jax.pipeline.preflight import check_early, check_sources, fit_config
from ste_jax.pipeline.select import choose, label
from ste_jax.reporting.html import write_report
from ste_jax.run.changes import Changes
from ste_jax.run.layout import RunDir
from ste_jax.run.tables import Table
from ste_jax.system import files
from ste_jax.system.errors import RequestError
from ste_jax.system.terminal import say


def run(
    config: Config, root: epath.Path, processes: Processes, *, new_shapes: bool = False
) -> RunDir:
    """Run the whole recipe, from instructions to evaluated judges.

    Raises:
      WorkError: a stage left nothing to go on with; names the stage and why.
      Preempted: asked to stop; finished work is kept.
    """
    with _held(config, root, processes, new_shapes) as fitted:
        context = open_run(fitted, config, root, processes, new_shapes=new_shapes)
        _recipe(context, config.iterations)
    return context.run


def foretell(
    config: Config, root: epath.Path, processes: Processes, *, new_shapes: bool = False
) -> None:
    """Print what `run` would make again, and why, and what it would make for the first time.
    Nothing is written.

    Raises:
      RequestError: what `run` would refuse.
    """
    run = RunDir(root)

    def lock(stack: ExitStack) -> None:
        stack.enter_context(run.locked(reading=True))

    with ExitStack() as stack, _leaving(processes), files.reading_only():
        check_phases(config)
        check_early(config, processes)
        check_batches(config)
        processes.from_first("lock", lambda: lock(stack))
        processes.from_first("sources", lambda: _check_sources(config, run))
        fitted = fit_config(config, root, processes, new_shapes=new_shapes)
        manifest_of(fitted, run, new_shapes)
        changes = Changes(before=config_of(run), dry=True, silent=not processes.first)
        context = Context(fitted, run, processes, log=_no_log, changes=changes)
        _foretell(context, config.iterations)
        if not changes.lines and processes.first:
            say("nothing is to be done")


def _foretell(context: Context, iterations: int) -> None:
    run, changes = context.run, context.changes
    if not run.begun() or not is_there(run.iteration(0)):
        changes.say("the whole run", f"{iterations} iterations, for the first time")
        return
    begin(context)
    select(context)
    make_pairs(context)
    evaluate(context, 0)
    for iteration in range(1, iterations + 1):
        if not is_there(context.judge_in(run.iteration(iteration - 1))):
            changes.say(f"iteration {iteration}", "all of it, for the first time")
            continue
        judge_and_choose(context, iteration)
        finetune_iteration(context, iteration)
        evaluate(context, iteration)


def _no_log(event: str, **values: Any) -> None:
    raise AssertionError(f"a dry run does nothing, and {event} was done")


@contextmanager
def _held(
    config: Config, root: epath.Path, processes: Processes, new_shapes: bool = False
) -> Iterator[Config]:
    """Work on a run, once all that it reads has opened and fits: nobody else may meanwhile, and the
    other processes learn why this one goes. Yields the config with nothing left open.

    A run that is there is held before it is looked at, since what is damaged is mended thereby; a
    new one has no directory until nothing is left that would refuse it."""
    run = RunDir(root)

    def lock(stack: ExitStack, there: bool) -> bool:
        if there:
            stack.enter_context(run.locked())
        return there

    with ExitStack() as stack, _leaving(processes):
        check_phases(config)
        check_early(config, processes)
        check_batches(config)
        held = processes.from_first("lock", lambda: lock(stack, bool(root.exists())))
        processes.from_first("sources", lambda: _check_sources(config, run))
        fitted = fit_config(config, root, processes, new_shapes=new_shapes)
        processes.from_first("new", lambda: lock(stack, not held))
        yield fitted


@contextmanager
def _leaving(processes: Processes) -> Iterator[None]:
    """If this process fails, say to the other processes why it stops."""
    try:
        yield
    except Exception as error:
        processes.leave(error)
        raise


def _check_sources(config: Config, run: RunDir) -> None:
    check_sources(config, run)
    check_sets(config, run)


def _recipe(context: Context, iterations: int) -> None:
    begin(context)
    select(context)
    make_pairs(context)
    evaluate(context, 0)
    for iteration in range(1, iterations + 1):
        judge_and_choose(context, iteration)
        finetune_iteration(context, iteration)
        evaluate(context, iteration)
    report(context)


def begin(context: Context) -> None:
    """The pool of instructions, the labelled pairs, and the seed as iteration 0's checkpoint."""
    take_in(context)
    take_in_labelled(context)
    import_seed(context)


def select(context: Context) -> None:
    """Label every instruction of the pool with the seed, then choose and split."""
    label(context)
    choose(context)


def judge_and_choose(context: Context, iteration: int) -> None:
    """Have the training pairs judged, and choose what the phases of fine-tuning train on."""
    config, here = context.config, context.run.iteration(iteration)
    derived = [path for each in PHASES.values() for path in each.made_of_judgments(config, here)]
    annotate(context, iteration, derived)
    for phase in PHASES.values():
        phase.annotate(context, iteration)
    _choose_rows(context, iteration)


def _choose_rows(context: Context, iteration: int) -> None:
    for phase in phases_of(context.config):
        phase.curate(context, iteration)


def config_in(root: epath.Path) -> Config:
    """The config of a run that was begun.

    Raises:
      RequestError: it is not a run, or a phase refuses the config.
    """
    if not RunDir(root).config.exists():
        raise RequestError(f"{root} is not a run: begin one with `ste run`")
    config = load_config(str(root / "config.yaml"))
    check_phases(config)
    return config


def run_stage(stage: str, root: epath.Path, iteration: int, processes: Processes) -> None:
    """Run one stage of a run that was begun, under the config in its directory.

    Raises:
      RequestError: not a run, or a stage whose inputs are not there yet.
    """
    config = config_in(root)
    with _held(config, root, processes) as fitted:
        context = open_run(fitted, config, root, processes)
        _stage(context, stage, iteration)


def _stage(context: Context, stage: str, iteration: int) -> None:
    begin(context)
    if stage == "select":
        select(context)
        return
    if stage == "pair":
        _need(context.run.selected, "select")
        make_pairs(context)
        return
    _need(context.run.pairs, "pair")
    here = context.run.iteration(iteration)
    if iteration < 1:
        raise RequestError("--iteration counts from 1; iteration 0 is the seed")
    if stage == "annotate":
        judge_and_choose(context, iteration)
    else:
        _need(here.judgments, f"annotate --iteration {iteration}")
        for phase in phases_of(context.config):
            for table in phase.needed(context.config, here):
                _need(table, f"annotate --iteration {iteration}")
        _choose_rows(context, iteration)
        finetune_iteration(context, iteration)


def _need(table: Table[Any], stage: str) -> None:
    if not table.complete():
        raise RequestError(f"{table.directory} is not there yet; run `ste {stage}` first")


def report(context: Context) -> None:
    """Write the HTML report. Process 0 alone."""
    context.processes.from_first("report", lambda: str(write_report(context.run, phase_reports())))
