"""What is the recipe?

`run` is all of it, top to bottom. Every step looks first at what is there: a step whose output is
whole and was made under the same knobs, by the same model, from the same rows, does nothing. So
running again is resuming, and a changed knob redoes what it touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from etils import epath

from ste_jax.config.differences import differences
from ste_jax.config.load import load_config
from ste_jax.config.schema import Config
from ste_jax.parallel.processes import Processes
from ste_jax.parallel.sharding import OtherDevices
from ste_jax.pipeline.annotate import annotate
from ste_jax.pipeline.banner import show_banner
from ste_jax.pipeline.context import SEED_STEP, Context, open_run
from ste_jax.pipeline.evaluate import check_sets, evaluate
from ste_jax.pipeline.finetune import finetune_phase
from ste_jax.pipeline.forecast import as_lines, device_of, estimate_of, forecast
from ste_jax.pipeline.intake import import_seed, is_there, take_in, take_in_labelled
from ste_jax.pipeline.pair import make_pairs
from ste_jax.pipeline.phases import PHASES, check_batches, check_phases, phase_reports, phases_of
from ste_jax.pipeline.plan import agree, foresee
from ste_jax.pipeline.preflight import check_early, check_meshes, check_sources, fit_config
from ste_jax.pipeline.select import choose, label
from ste_jax.reporting.html import write_report
from ste_jax.run.layout import RunDir
from ste_jax.run.plan import REST
from ste_jax.run.tables import Table, held
from ste_jax.system import files, progress
from ste_jax.system.errors import RequestError
from ste_jax.system.terminal import say


def run(
    config: Config,
    root: epath.Path,
    processes: Processes,
    *,
    new_shapes: bool = False,
    yes: bool = False,
    ask: bool = False,
) -> RunDir:
    """Run the whole recipe, from instructions to evaluated judges.

    The plan is printed first. Finished work is set aside for it only if that is agreed to: by
    `yes`, or at the terminal where a person may be asked (`ask`).

    Raises:
      RequestError: finished work would be set aside, and that is not agreed to.
      WorkError: a stage left nothing to go on with; names the stage and why.
      Preempted: asked to stop; finished work is kept.
    """
    steps = partial(_recipe, iterations=config.iterations)
    with _held(config, root, processes, new_shapes) as fitted, held():
        show_banner(fitted, root, processes)

        def plan() -> None:
            found = foresee(fitted, RunDir(root), steps, new_shapes=new_shapes)
            agree(found, fitted, yes=yes, ask=ask)

        processes.from_first("plan", plan)
        context = open_run(fitted, config, root, processes, new_shapes=new_shapes)
        steps(context)
        processes.from_first("all is done", lambda: files.forget(context.run.agreed))
    return context.run


def foretell(
    config: Config, root: epath.Path, processes: Processes, *, new_shapes: bool = False
) -> None:
    """Print what `run` would do. Nothing is written.

    Raises:
      RequestError: what `run` would refuse.
    """
    run, steps = RunDir(root), partial(_recipe, iterations=config.iterations)

    def lock(stack: ExitStack) -> None:
        stack.enter_context(run.locked(reading=True))

    with ExitStack() as stack, _leaving(processes), files.reading_only():
        check_phases(config)
        here = True
        try:
            _check_devices(config)
        except OtherDevices as error:  # a plan needs none
            progress.warn(f"{error}: the plan is for the devices that the config is for")
            here = False
        check_early(config, processes)
        processes.from_first("lock", lambda: lock(stack))
        processes.from_first("sources", lambda: _check_sources(config, run))
        fitted = fit_config(config, root, processes, new_shapes=new_shapes)

        def plan() -> None:
            found = foresee(fitted, run, steps, new_shapes=new_shapes)
            device = device_of(fitted, here=here) if processes.count == 1 else ""
            estimate = estimate_of(fitted, run, device) if found.todo else {}
            figures = forecast(fitted, run, found, processes.count, estimate)
            for line in [*found.lines(), *as_lines(figures)]:
                say(line, fit=True)

        processes.from_first("plan", plan)


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
        _check_devices(config)
        check_early(config, processes)
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


def _check_devices(config: Config) -> None:
    check_meshes(config)
    check_batches(config)


def _check_sources(config: Config, run: RunDir) -> None:
    check_sources(config, run)
    check_sets(config, run)


def _recipe(context: Context, iterations: int) -> None:
    if context.changes.dry:  # which steps there are to foresee follows from what is there
        for _, step in _steps(context, iterations):
            step()
        return
    steps = list(_steps(context, iterations))
    with progress.steps(f"run {context.config.name}", len(steps)) as next_step:
        for name, step in steps:
            next_step(name)
            step()
        report(context)


def _steps(context: Context, iterations: int) -> Iterator[tuple[str, partial[None]]]:
    """The steps of the recipe, in order, each with its name: those that `ste status` counts."""
    yield "intake", partial(intake, context)
    yield SEED_STEP, partial(import_seed, context)
    if not _known(context, 0, REST):
        return
    yield "label", partial(label, context)
    yield "select", partial(choose, context)
    yield "pair", partial(make_pairs, context)
    yield "evaluate 0", partial(evaluate, context, 0)
    phases = context.config.finetune.stages
    for i in range(1, iterations + 1):
        if not _known(context, i - 1, f"iteration {i}"):
            continue
        yield f"annotate {i}", partial(judge_and_choose, context, i)
        for phase in phases:
            yield f"{phase} {i}", partial(finetune_phase, context, i, phase)
        for phase in phases[:-1]:
            yield f"evaluate {i} after {phase}", partial(evaluate, context, i, phase)
        yield f"evaluate {i}", partial(evaluate, context, i)


def _known(context: Context, iteration: int, title: str) -> bool:
    """Whether the judge of an iteration is there. If it is not, in a dry pass, nothing is known of
    the steps that ask it: they are named by `title`."""
    changes, following = context.changes, context.run.iteration(iteration + 1)
    if not changes.dry or is_there(context.judge_in(context.run.iteration(iteration))):
        return True
    if changes.others and following.root.exists():
        what = "all of it; what is there and does not fit is set aside"
        changes.plan(title, "again", what, asks=True)
    elif changes.redone and following.root.exists():  # that judge is made again as it was
        asks = bool(changes.before) and bool(differences(changes.before, context.config))
        what = "what is there and fits stays, and the rest is made"
        changes.plan(title, "goes on", what, asks=asks)
    else:
        changes.first(title, "all of it, for the first time")
    return False


def intake(context: Context) -> None:
    """The pool of instructions, and the labelled pairs."""
    take_in(context)
    take_in_labelled(context)


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


def run_stage(
    stage: str,
    root: epath.Path,
    iteration: int,
    processes: Processes,
    *,
    yes: bool = False,
    ask: bool = False,
) -> None:
    """Run one stage of a run that was begun, under the config in its directory. The plan is printed
    and agreed to as in `run`.

    Raises:
      RequestError: not a run, a stage whose inputs are not there yet, or finished work would be set
        aside, and that is not agreed to.
    """
    config, steps = config_in(root), partial(_stage, stage=stage, iteration=iteration)
    with _held(config, root, processes) as fitted, held():

        def plan() -> None:
            agree(foresee(fitted, RunDir(root), steps), fitted, yes=yes, ask=ask)

        processes.from_first("plan", plan)
        context = open_run(fitted, config, root, processes)
        steps(context)
        processes.from_first("the stage is done", lambda: files.forget(context.run.agreed))


def _stage(context: Context, stage: str, iteration: int) -> None:
    intake(context)
    import_seed(context)
    if not _known(context, 0, stage):
        return
    if stage == "select":
        label(context)
        choose(context)
        return
    if stage == "pair":
        _need(context.run.selected, "select")
        make_pairs(context)
        return
    _need(context.run.pairs, "pair")
    here = context.run.iteration(iteration)
    if iteration < 1:
        raise RequestError("--iteration counts from 1; iteration 0 is the seed")
    if iteration > context.config.iterations:
        raise RequestError(
            f"--iteration {iteration}: the run has {context.config.iterations}; more come with "
            f"`ste run {context.run.root} iterations={iteration}`"
        )
    if not _known(context, iteration - 1, f"{stage} {iteration}"):
        return
    if stage == "annotate":
        judge_and_choose(context, iteration)
    else:
        _need(here.judgments, f"annotate --iteration {iteration}")
        for phase in phases_of(context.config):
            for table in phase.needed(context.config, here):
                _need(table, f"annotate --iteration {iteration}")
        _choose_rows(context, iteration)
        for each in context.config.finetune.stages:
            finetune_phase(context, iteration, each)


def _need(table: Table[Any], stage: str) -> None:
    if not table.complete():
        raise RequestError(f"{table.directory} is not there yet; run `ste {stage}` first")


def report(context: Context) -> None:
    """Write the HTML report. Process 0 alone."""
    context.processes.from_first("report", lambda: str(write_report(context.run, phase_reports())))
