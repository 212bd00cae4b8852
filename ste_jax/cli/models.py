"""What do the words of commands about a model mean?"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from ste_jax.cli.parts import begin_alone, new_command
from ste_jax.commands import words
from ste_jax.commands.options import DecodingOptions
from ste_jax.system.terminal import say


def add(commands: Any) -> None:
    """Add the commands."""
    _add_judge(commands)
    _add_generate(commands)
    _add_evaluate(commands)
    _add_score(commands)
    _add_import(commands)
    _add_export(commands)


_REMEMBERED = "default: as the model remembers, else as a run asks its seed"


def _add_decoding(parser: Any, **defaults: Any) -> None:
    """Options of sampling; those without a default are as the checkpoint remembers."""

    def add(name: str, type: Callable[[str], Any], help: str, **more: Any) -> None:
        default = defaults.get(name)
        usual = _REMEMBERED if default is None else f"default {default}"
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type, default=default, help=f"{help}{usual}", **more)

    add("max_new_tokens", words.positive, "", metavar="T")
    greedy = "" if "temperature" in defaults else "of a single vote 0, else "
    add("temperature", words.temperature, f"0 is greedy; {greedy}")
    add("top_p", words.share, "")
    add("top_k", words.natural, "0: off; ")
    add("min_p", words.fraction, "0: off; ")
    parser.add_argument("--seed", type=words.seed, default=0)
    usual = DecodingOptions()
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=usual.dtype, help="default %(default)s"
    )
    parser.add_argument(
        "--weights",
        choices=("dtype", "int8"),
        default=usual.weights,
        help="what matrices are kept in: int8 is smaller and less exact; default %(default)s",
    )
    parser.add_argument(
        "--groups", type=words.positive, default=usual.groups, help="prompts decoded at once"
    )
    parser.add_argument(
        "--group-size",
        type=words.positive,
        default=usual.group_size,
        help="samples of each at once",
    )
    parser.add_argument(
        "--max-prompt-tokens",
        type=words.positive,
        metavar="T",
        help="longer prompts are refused; rounded up to 512, 1024, 2048, ...; default: as many as "
        "the longest has",
    )


def _add_judging(parser: Any) -> None:
    parser.add_argument("--template", help=f"judge template: a name or a YAML file; {_REMEMBERED}")
    parser.add_argument(
        "--force-verdict",
        action=argparse.BooleanOptionalAction,
        help=f"make a judgment that ends without a verdict choose, counted apart; {_REMEMBERED}",
    )
    parser.add_argument(
        "--votes", type=words.positive, default=1, metavar="K", help="judgments per order"
    )


def _judge_options(arguments: argparse.Namespace) -> Any:
    from ste_jax.commands.judge_options import JudgeOptions

    names = [field.name for field in dataclasses.fields(JudgeOptions)]
    return JudgeOptions(**{name: getattr(arguments, name) for name in names})


def _add_judge(commands: Any) -> None:
    parser = new_command(
        commands, "judge", _judge, "judge two answers: reasoning and verdict in both orders"
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--instruction", required=True, type=words.text, metavar="TEXT")
    parser.add_argument("--a", required=True, type=words.text, metavar="TEXT", help="answer A")
    parser.add_argument("--b", required=True, type=words.text, metavar="TEXT", help="answer B")
    _add_judging(parser)
    _add_decoding(parser)


def _judge(arguments: argparse.Namespace) -> int:
    begin_alone()
    from ste_jax.commands.judge import judge_two

    say(judge_two(_judge_options(arguments), arguments.instruction, arguments.a, arguments.b))
    return 0


def _add_generate(commands: Any) -> None:
    parser = new_command(
        commands,
        "generate",
        _generate,
        "answer the prompts of a JSONL file",
        "In: `id` and `prompt` or `messages`. Out, a row per sample: `id, sample, text, n_tokens, "
        "logprob, finish_reason`. Run again to resume.",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--prompts", required=True, metavar="FILE.jsonl")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl")
    parser.add_argument("--samples", type=words.positive, default=1, metavar="N")
    parser.add_argument("--ignore-eos", action="store_true", help="always sample T tokens")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        type=words.text,
        metavar="TEXT",
        help="may be repeated",
    )
    _add_decoding(parser, max_new_tokens=256, temperature=0.7, top_p=0.9, top_k=0, min_p=0.0)


def _generate(arguments: argparse.Namespace) -> int:
    begin_alone()
    from ste_jax.commands.generate import GenerateOptions, generate

    names = [field.name for field in dataclasses.fields(GenerateOptions)]
    say(generate(GenerateOptions(**{name: getattr(arguments, name) for name in names})))
    return 0


def _add_evaluate(commands: Any) -> None:
    parser = new_command(
        commands, "evaluate", _evaluate, "measure a judge on pairs with known labels"
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--benchmark", required=True, metavar="NAME", help="the data's format")
    parser.add_argument("--data", required=True, metavar="PATH", help="or a shipped set: pico/NAME")
    parser.add_argument("--out", required=True, metavar="DIR", help="judgments and evaluation.json")
    _add_measures(parser, "")
    _add_judging(parser)
    _add_decoding(parser)


def _add_measures(parser: Any, unless: str) -> None:
    """What is measured; `unless` is said of what happens where an option is not given."""
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="COLUMN",
        help=f"tell accuracy apart by a column of the data; may be repeated{unless}",
    )
    parser.add_argument(
        "--traces",
        metavar="WHO",
        help=f"measure which steps of a judgment are right, where a checker can tell: pico{unless}",
    )
    parser.add_argument(
        "--bootstrap",
        type=words.positive,
        metavar="N",
        help=f"resamples for the 95%% intervals{unless or '; default 2000'}",
    )


def _measures(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked to be measured; nothing else."""
    given = {name: getattr(arguments, name) for name in ("by", "traces", "bootstrap")}
    return {name: value for name, value in given.items() if value}


def _evaluate(arguments: argparse.Namespace) -> int:
    begin_alone()
    from ste_jax.commands.evaluate import as_text, evaluate_benchmark

    result = evaluate_benchmark(
        _judge_options(arguments),
        arguments.benchmark,
        arguments.data,
        arguments.out,
        _measures(arguments),
    )
    say(as_text(result))
    return 0


def _add_score(commands: Any) -> None:
    parser = new_command(commands, "score", _score, "metrics again from stored judgments, no model")
    parser.add_argument("out", metavar="DIR", help="what `ste evaluate --out` wrote")
    _add_measures(parser, "; default: as `ste evaluate` did")


def _score(arguments: argparse.Namespace) -> int:
    begin_alone()  # it asks no model, but loads what would
    from ste_jax.commands.evaluate import as_text, score_again

    say(as_text(score_again(arguments.out, _measures(arguments))))
    return 0


def _add_import(commands: Any) -> None:
    parser = new_command(
        commands, "import", _import, "read a model and save it as an Orbax checkpoint"
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")


def _import(arguments: argparse.Namespace) -> int:
    begin_alone()
    from ste_jax.commands.import_model import import_model

    say(import_model(arguments.source, arguments.checkpoint, arguments.dtype))
    return 0


def _add_export(commands: Any) -> None:
    parser = new_command(
        commands,
        "export",
        _export,
        "write a model as a Hugging Face directory, with a model card",
        "transformers, vLLM and others read what it writes. Of a run's checkpoint the card says "
        "what was measured, as long as the checkpoint lies in its run.",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("directory", metavar="HF_DIR")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="default: as the checkpoint has it; bfloat16 for what is no checkpoint of ours",
    )


def _export(arguments: argparse.Namespace) -> int:
    begin_alone()
    from ste_jax.commands.export_model import export_model
    from ste_jax.pipeline.phases import phase_reports

    say(export_model(arguments.model, arguments.directory, phase_reports(), arguments.dtype))
    return 0
