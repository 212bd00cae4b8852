"""What do the words of commands about a run mean?"""

from __future__ import annotations

import argparse
import os
from typing import Any

from ste_jax.cli.parts import add_processes, join_processes, new_command
from ste_jax.system.terminal import say


def add(commands: Any) -> None:
    """Add the commands."""
    _add_run(commands)
    _add_stages(commands)
    _add_report(commands)


def _add_run(commands: Any) -> None:
    parser = new_command(
        commands,
        "run",
        _run,
        "run the whole recipe; run again to resume",
        "Changed knobs redo only what they touch. The run lies in runs/NAME unless --dir differs.",
    )
    parser.add_argument("config", help="a YAML file, or the name of a shipped config")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="knobs, as finetune.epochs=3"
    )
    parser.add_argument("--dir", metavar="RUN", help="the run's directory (local or gs://)")
    parser.add_argument(
        "--new-shapes",
        action="store_true",
        help="take the decoding shapes of the config, not those the run was begun with",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what would be made again, and why, and what for the first time; refused "
        "while another command works on the run",
    )
    add_processes(parser)


def _run(arguments: argparse.Namespace) -> int:
    from etils import epath

    from ste_jax.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)

    def check() -> None:
        from ste_jax.pipeline.phases import check_phases

        check_phases(config)

    processes = join_processes(arguments, check)
    from ste_jax.pipeline.recipe import foretell, run

    root = epath.Path(arguments.dir or os.path.join("runs", config.name))
    if arguments.dry_run:
        foretell(config, root, processes, new_shapes=arguments.new_shapes)
        return 0
    done = run(config, root, processes, new_shapes=arguments.new_shapes)
    if processes.first:
        from ste_jax.commands.report import tables_of
        from ste_jax.pipeline.phases import phase_reports

        say(tables_of(done, phase_reports()))
    return 0


def _add_stages(commands: Any) -> None:
    helps = {
        "select": "label the instructions and choose the subset",
        "pair": "make the pairs",
        "annotate": "sample an iteration's judgments and choose the training set",
        "finetune": "train an iteration's judge",
    }
    for name, help in helps.items():
        parser = new_command(commands, name, _stage, f"one stage by itself: {help}")
        parser.add_argument("run", metavar="RUN", help="a directory that `ste run` began")
        parser.add_argument("--iteration", type=int, default=1, metavar="K", help="default 1")
        parser.set_defaults(stage=name)
        add_processes(parser)


def _stage(arguments: argparse.Namespace) -> int:
    from etils import epath

    root = epath.Path(arguments.run)

    def check() -> None:
        from ste_jax.pipeline.recipe import config_in

        config_in(root)

    processes = join_processes(arguments, check)
    from ste_jax.pipeline.recipe import run_stage

    run_stage(arguments.stage, root, arguments.iteration, processes)
    return 0


def _add_report(commands: Any) -> None:
    parser = new_command(
        commands, "report", _report, "write the HTML report of a run and print its tables"
    )
    parser.add_argument("run", metavar="RUN")


def _report(arguments: argparse.Namespace) -> int:
    from ste_jax.commands.report import report
    from ste_jax.pipeline.phases import phase_reports

    say(report(arguments.run, phase_reports()))
    return 0
