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
from ste_jax.errors import RequestError
from ste_jax.parallel.processes import Processes
from ste_jax.pipeline.annotate import annotate, dpo_asks_sft, dpo_wants_more
from ste_jax.pipeline.context import Context, check_early, fit_config, open_run
from ste_jax.pipeline.curate import curate
from ste_jax.pipeline.evaluate import check_sets, evaluate
from ste_jax.pipeline.finetune import finetune_iteration
from ste_jax.pipeline.intake import import_seed, take_in, take_in_labelled
from ste_jax.pipeline.pair import make_pairs
from ste_jax.pipeline.select import choose, label
from ste_jax.pipeline.sources import check_sources
from ste_jax.reporting.html import write_report
from ste_jax.run.layout import RunDir, Table


def run(
    config: Config, root: epath.Path, processes: Processes, *, new_shapes: bool = False
) -> RunDir:
    """The whole recipe, from instructions to evaluated judges.

    Raises:
      WorkError: a stage left nothing to go on with; names the stage and why.
      Preempted: asked to stop; finished work is kept.
    """
    with _held(config, root, processes, new_shapes) as fitted:
        context = open_run(fitted, config, root, processes, new_shapes=new_shapes)
        _recipe(context, config.iterations)
    return context.run


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

    with ExitStack() as stack:
        try:
            check_early(config, processes)
            held = processes.from_first("lock", lambda: lock(stack, bool(root.exists())))
            processes.from_first("sources", lambda: _check_sources(config, run))
            fitted = fit_config(config, root, processes, new_shapes=new_shapes)
            processes.from_first("new", lambda: lock(stack, not held))
            yield fitted
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
        annotate(context, iteration)
        curate(context, iteration)
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


def run_stage(stage: str, root: epath.Path, iteration: int, processes: Processes) -> None:
    """One stage of a run that was begun, under the config that lies in it.

    Raises:
      RequestError: not a run, or a stage whose inputs are not there yet.
    """
    if not RunDir(root).config.exists():
        raise RequestError(f"{root} is not a run: begin one with `ste run`")
    config = load_config(str(root / "config.yaml"))
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
        annotate(context, iteration)
        curate(context, iteration)
    else:
        _need(here.judgments, f"annotate --iteration {iteration}")
        if dpo_wants_more(context.config) and not dpo_asks_sft(context.config):
            _need(here.more_judgments, f"annotate --iteration {iteration}")
        curate(context, iteration)
        finetune_iteration(context, iteration)


def _need(table: Table[Any], stage: str) -> None:
    if not table.complete():
        raise RequestError(f"{table.directory} is not there yet; run `ste {stage}` first")


def report(context: Context) -> None:
    """Write the HTML report. Process 0 alone."""
    context.processes.from_first("report", lambda: str(write_report(context.run)))
