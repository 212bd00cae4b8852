"""What do all commands have in common: a parser, a beginning, processes?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Command = Callable[[argparse.Namespace], int]


def new_command(commands: Any, name: str, command: Command, help: str, epilog: str = "") -> Any:
    """Add a command: its parser, with what all commands have in common."""
    parser = commands.add_parser(name, help=help, description=help, epilog=epilog)
    parser.set_defaults(command=command)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_processes(parser: Any) -> None:
    """Add the options of a command that may be one of several processes."""
    group = parser.add_argument_group("several processes (one per host)")
    group.add_argument(
        "--distributed", action="store_true", help="join as the TPU environment says"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, metavar="P", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")


def join_processes(arguments: argparse.Namespace, check: Callable[[], object]) -> Any:
    """Begin a command that may be one of several processes (see `start.together`)."""
    from ste_jax.commands.start import together

    return together(
        arguments.coordinator,
        arguments.processes,
        arguments.process_id,
        automatic=arguments.distributed,
        check=check,
    )


def begin_alone() -> None:
    """Begin a command of one process."""
    from ste_jax.commands.start import alone

    alone()
