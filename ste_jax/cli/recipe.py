"""What do the words of commands about a run mean?"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from ste_jax.cli.parts import add_processes, join_processes, new_command
from ste_jax.system.terminal import say


def add(commands: Any) -> None:
    """Add the commands."""
    _add_run(commands)
    _add_stages(commands)
    _add_status(commands)
    _add_clean(commands)
    _add_report(commands)


def _add_run(commands: Any) -> None:
    parser = new_command(
        commands,
        "run",
        _run,
        "run the whole recipe; run again to resume",
        "Changed knobs redo only what they touch.",
        (
            "ste run pico",
            "ste run runs/pico annotate.samples=8 --dry-run",
            "ste run mine.yaml --dir gs://bucket/mine finetune.epochs=3",
        ),
    )
    parser.add_argument(
        "config",
        help="a YAML file, the name of a shipped config, or a run's directory, which goes on under "
        "its own config",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="knobs, as finetune.epochs=3"
    )
    parser.add_argument(
        "--dir",
        metavar="RUN",
        help="the run's directory (local or gs://); default: runs/NAME, by the config's name",
    )
    parser.add_argument(
        "--new-shapes",
        action="store_true",
        help="take the decoding shapes of the config, not those the run was begun with",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what would be done, what would be made again, and why; refused while "
        "another command works on the run",
    )
    _add_yes(parser)
    add_processes(parser)


def _run(arguments: argparse.Namespace) -> int:
    from etils import epath

    from ste_jax.config.load import load_config
    from ste_jax.run.layout import run_named

    there = run_named(arguments.config)
    config = load_config(str(there.config if there else arguments.config), arguments.overrides)

    def check() -> None:
        from ste_jax.pipeline.phases import check_phases

        check_phases(config)

    processes = join_processes(arguments, check)
    from ste_jax.pipeline.recipe import foretell, run

    own = there.root if there else os.path.join("runs", config.name)
    root = epath.Path(arguments.dir or own)
    if arguments.dry_run:
        foretell(config, root, processes, new_shapes=arguments.new_shapes)
        return 0
    done = run(
        config, root, processes, new_shapes=arguments.new_shapes, yes=arguments.yes, ask=True
    )
    if processes.first:
        from ste_jax.commands.report import tables_of
        from ste_jax.pipeline.phases import phase_reports

        say(tables_of(done, phase_reports()))
    return 0


def _add_yes(parser: Any) -> None:
    parser.add_argument(
        "--yes", action="store_true", help="set finished work aside for this without a question"
    )


def _add_stages(commands: Any) -> None:
    helps = {
        "select": "label the instructions and choose the subset",
        "pair": "make the pairs",
        "annotate": "sample an iteration's judgments and choose the training set",
        "finetune": "train an iteration's judge",
    }
    for name, help in helps.items():
        number = " --iteration 2" if name in ("annotate", "finetune") else ""
        parser = new_command(
            commands,
            name,
            _stage,
            f"one stage by itself: {help}",
            examples=(f"ste {name} runs/pico{number}",),
        )
        parser.add_argument("run", metavar="RUN", help="a directory that `ste run` began")
        parser.add_argument("--iteration", type=int, default=1, metavar="K", help="default: 1")
        parser.set_defaults(stage=name)
        _add_yes(parser)
        add_processes(parser)


def _stage(arguments: argparse.Namespace) -> int:
    from etils import epath

    root = epath.Path(arguments.run)

    def check() -> None:
        from ste_jax.pipeline.recipe import config_in

        config_in(root)

    processes = join_processes(arguments, check)
    from ste_jax.pipeline.recipe import run_stage

    began = time.time()
    run_stage(arguments.stage, root, arguments.iteration, processes, yes=arguments.yes, ask=True)
    if processes.first:
        from ste_jax.commands.report import stage_report
        from ste_jax.pipeline.phases import phase_reports

        stage, iteration = arguments.stage, arguments.iteration
        say(stage_report(arguments.run, stage, iteration, phase_reports(), began))
    return 0


def _add_status(commands: Any) -> None:
    parser = new_command(
        commands,
        "status",
        _status,
        "say where a run stands, what it did last, and what is next",
        "It only reads, loads no model, and may be asked while a command works on the run.",
        ("ste status runs/pico",),
    )
    parser.add_argument("run", metavar="RUN", help="a run's directory (local or gs://)")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def _status(arguments: argparse.Namespace) -> int:
    import json

    from ste_jax.commands.status import as_text, status

    found = status(arguments.run)
    say(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else as_text(found))
    return 0


def _add_clean(commands: Any) -> None:
    parser = new_command(
        commands,
        "clean",
        _clean,
        "list what other knobs have made in a run and is set aside; remove it if you say so",
        examples=("ste clean runs/pico",),
    )
    parser.add_argument("run", metavar="RUN", help="a run's directory (local or gs://)")
    parser.add_argument("--yes", action="store_true", help="remove it without a question")


def _clean(arguments: argparse.Namespace) -> int:
    from ste_jax.commands.clean import clean

    say(clean(arguments.run, yes=arguments.yes))
    return 0


def _add_report(commands: Any) -> None:
    parser = new_command(
        commands,
        "report",
        _report,
        "write the HTML report of a run and print its tables",
        "The page is RUN/report/index.html.",
        ("ste report runs/pico",),
    )
    parser.add_argument("run", metavar="RUN", help="a run's directory (local or gs://)")


def _report(arguments: argparse.Namespace) -> int:
    from ste_jax.commands.report import report
    from ste_jax.pipeline.phases import phase_reports

    say(report(arguments.run, phase_reports()))
    return 0
