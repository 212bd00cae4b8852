"""What does `ste` do with its words?

Each thing a person does is a subcommand, which parses words, imports what it needs and calls it."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from ste_jax.cli import configs, models, recipe
from ste_jax.cli.parts import MODEL
from ste_jax.commands import words
from ste_jax.system import preemption, progress
from ste_jax.system.errors import Preempted, SteError, unexpected
from ste_jax.system.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 the work failed, 2 the request was wrong,
    3 a judge gave no verdict, 75 stopped in good order and to be run again, 130 stopped so by
    Ctrl-C."""
    with preemption.installed():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    given = list(sys.argv[1:] if argv is None else argv)
    arguments, left = parser.parse_known_args(words.with_values(given))
    if left and hasattr(arguments, "overrides") and not any(word[:1] == "-" for word in left):
        arguments.overrides += left  # key=value words behind an option
    elif left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    with progress.shown(f"ste {given[0]}", quiet=arguments.quiet, form=arguments.log_format):
        return _obey(arguments)


def _obey(arguments: argparse.Namespace) -> int:
    try:
        words.check_words(arguments)
        return int(arguments.command(arguments))
    except SteError as error:
        status = preemption.exit_status() if isinstance(error, Preempted) else error.exit_status
        return _failed(arguments, " ".join(str(error).split()), status)
    except Exception as error:
        return _failed(arguments, unexpected(error), 1)


def _failed(arguments: argparse.Namespace, why: str, status: int) -> int:
    """Say why a command ended; returns its status."""
    if arguments.debug:
        progress.error(traceback.format_exc())
    progress.error(f"ste: {why}", status=status)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ste",
        description="Self-Taught Evaluators: an LLM judge that trains itself.",
        epilog=f"MODEL is {MODEL}. `ste COMMAND --help` has all options and an example.",
    )
    parser.add_argument("--version", action="version", version=f"ste_jax {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    recipe.add(commands)
    configs.add(commands)
    models.add(commands)
    return parser
