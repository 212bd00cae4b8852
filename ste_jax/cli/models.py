"""What do the words of commands about a model mean?"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ste_jax.cli.parts import MODEL, begin_alone, new_command
from ste_jax.commands import words
from ste_jax.commands.options import DecodingOptions
from ste_jax.config.schema import RoleSet
from ste_jax.system.terminal import say


def add(commands: Any) -> None:
    """Add the commands."""
    _add_judge(commands)
    _add_generate(commands)
    _add_evaluate(commands)
    _add_score(commands)
    _add_import(commands)
    _add_export(commands)


_OF_JUDGE = "as remembered, else"
"""The beginning of the defaults of options that a judge's checkpoint knows."""
_REMEMBERED = (
    "A judge that a run trained remembers how it was trained to be asked; another model is asked "
    "as a run asks its seed."
)
_DTYPES = ("float32", "bfloat16")


def _add_sampling(parser: Any, said: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """Options of how a text is drawn. By their names, `said` has their defaults in words, and
    `given` those that do not depend on the model."""

    def add(name: str, type: Callable[[str], Any], metavar: str, help: str) -> None:
        flag = "--" + name.replace("_", "-")
        parser.add_argument(
            flag,
            type=type,
            default=given.get(name),
            metavar=metavar,
            help=f"{help}; default: {said[name]}",
        )

    add("max_new_tokens", words.positive, "T", "the most tokens of a text")
    add("temperature", words.temperature, "X", "0 is greedy")
    add("top_p", words.share, "P", "draw among the likeliest tokens of this share")
    add("top_k", words.natural, "K", "draw among so many likeliest tokens, 0 is off")
    add("min_p", words.fraction, "P", "leave out what is less than so likely as the likeliest")
    parser.add_argument(
        "--seed",
        type=words.seed,
        default=0,
        metavar="S",
        help="another one draws other texts; default: 0",
    )


def _add_decoding(parser: Any) -> None:
    """Options of what the model computes in, and how much at once."""
    usual = DecodingOptions()
    group = parser.add_argument_group("the engine")
    group.add_argument(
        "--dtype",
        choices=_DTYPES,
        default=usual.dtype,
        help="what is computed in, and weights are kept in: bfloat16 takes half the memory, 16 GB "
        "and not 32 for a model of 8B, and is less exact; default: %(default)s",
    )
    group.add_argument(
        "--weights",
        choices=("dtype", "int8"),
        default=usual.weights,
        help="what matrices are kept in: int8 is smaller and less exact, dtype is what is computed "
        "in; default: %(default)s",
    )
    group.add_argument(
        "--groups",
        type=words.positive,
        default=usual.groups,
        metavar="N",
        help="prompts decoded at once; default: %(default)s",
    )
    group.add_argument(
        "--group-size",
        type=words.positive,
        default=usual.group_size,
        metavar="N",
        help="samples of each at once; default: %(default)s",
    )
    group.add_argument(
        "--max-prompt-tokens",
        type=words.positive,
        metavar="T",
        help="longer prompts are refused; rounded up to 512, 1024, 2048, ...; default: as many as "
        "the longest has",
    )


def _add_model(parser: Any) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)


def _add_judging(parser: Any) -> None:
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="the judge's prompt: a name that `ste config --templates` lists, or a YAML file; "
        f"default: {_OF_JUDGE} judge",
    )
    parser.add_argument(
        "--force-verdict",
        action=argparse.BooleanOptionalAction,
        help="make a judgment that ends without a verdict choose, which is counted apart; "
        f"default: {_OF_JUDGE} not",
    )
    parser.add_argument(
        "--votes",
        type=words.positive,
        default=1,
        metavar="K",
        help="judgments in each order; default: 1, which is greedy unless --temperature is given",
    )
    usual = dataclasses.asdict(RoleSet().judge.sampling)
    usual["max_new_tokens"] = "a quarter of the context, at most 4096"
    said = {name: f"{_OF_JUDGE} {value}" for name, value in usual.items()}
    said["temperature"] = f"0 for one vote; for several {said['temperature']}"
    _add_sampling(parser, said, {})
    _add_decoding(parser)


def _judge_options(arguments: argparse.Namespace) -> Any:
    from ste_jax.commands.judge_options import JudgeOptions

    names = [field.name for field in dataclasses.fields(JudgeOptions)]
    return JudgeOptions(**{name: getattr(arguments, name) for name in names})


def _add_judge(commands: Any) -> None:
    parser = new_command(
        commands,
        "judge",
        _judge,
        "judge two answers: reasoning and verdict in both orders",
        "TEXT is a text, @FILE the text of a file, - that of standard input; a text that begins "
        "with @ is given with two. Exit status 3: the judge gave no verdict.\n\n" + _REMEMBERED,
        examples=(
            'ste judge runs/pico --instruction "What is 2 + 3?" --a "It is 5." --b "It is 6."',
            "ste judge runs/mine --instruction @question.txt --a @a.txt --b - --votes 8 --json",
        ),
    )
    _add_model(parser)
    for flag, what in (
        ("--instruction", "what both answer"),
        ("--a", "answer a"),
        ("--b", "answer b"),
    ):
        parser.add_argument(flag, required=True, type=words.text, metavar="TEXT", help=what)
    parser.add_argument(
        "--json", action="store_true", help="print the verdict as an object of JSON"
    )
    _add_judging(parser)


def _judge(arguments: argparse.Namespace) -> int:
    texts = {name: getattr(arguments, name) for name in ("instruction", "a", "b")}
    read = words.read_texts({f"--{name}": text for name, text in texts.items()})
    begin_alone()
    from ste_jax.commands.judge_two import as_json, as_text, check_verdict, judge_two

    options = _judge_options(arguments)
    judge, verdict = judge_two(options, *read.values())
    asked = arguments.model, judge.iteration
    say(as_json(verdict, *asked) if arguments.json else as_text(verdict, judge.task))
    check_verdict(options, judge.task, verdict)
    return 0


def _add_generate(commands: Any) -> None:
    parser = new_command(
        commands,
        "generate",
        _generate,
        "answer the prompts of a JSONL file",
        "In: `id` and `prompt` or `messages`. Out, a row per sample: `id, sample, text, n_tokens, "
        "logprob, finish_reason`. OUT.made.json beside it holds the model and the "
        "settings. Stopped, the same command goes on; done, it says so.",
        examples=("ste generate pico --prompts prompts.jsonl --out answers.jsonl --samples 4",),
    )
    _add_model(parser)
    parser.add_argument(
        "--prompts", required=True, metavar="FILE.jsonl", help="the prompts, one a line"
    )
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="where answers go")
    parser.add_argument(
        "--samples",
        type=words.positive,
        default=1,
        metavar="N",
        help="answers to each prompt; default: 1",
    )
    parser.add_argument(
        "--ignore-eos",
        action="store_true",
        help="always sample T tokens; default: the model ends its text",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        type=words.text,
        metavar="TEXT",
        help="a text that ends an answer; may be repeated; default: none",
    )
    _add_sampling(parser, {name: str(value) for name, value in _GENERATE.items()}, _GENERATE)
    _add_decoding(parser)


_GENERATE = {"max_new_tokens": 256, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "min_p": 0.0}
"""How `ste generate` draws texts unless it is told otherwise."""


def _generate(arguments: argparse.Namespace) -> int:
    begin_alone()
    from ste_jax.commands.generate import GenerateOptions, generate

    names = [field.name for field in dataclasses.fields(GenerateOptions)]
    say(generate(GenerateOptions(**{name: getattr(arguments, name) for name in names})))
    return 0


def _add_evaluate(commands: Any) -> None:
    parser = new_command(
        commands,
        "evaluate",
        _evaluate,
        "measure a judge on pairs with known labels",
        "Stopped, the same command goes on. Another judge, or other options, need another --out."
        "\n\n" + _REMEMBERED,
        examples=(
            "ste evaluate runs/pico --benchmark pairs --data pico/same-task --out out/same-task",
            "ste evaluate runs/mine --benchmark llmbar --data natural.json --votes 8 --out out/nat",
        ),
    )
    _add_model(parser)
    parser.add_argument(
        "--benchmark",
        required=True,
        metavar="NAME",
        help="the form of the data: pairs (JSONL of instruction, response_a, response_b, label) or "
        "llmbar",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="the file, or a shipped set: pico/same-task, pico/other-task",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="where pairs, judgments and evaluation.json go; `ste score` measures them again",
    )
    _add_measures(parser, by="none", traces="none", bootstrap="2000")
    _add_judging(parser)


def _add_measures(parser: Any, **usual: str) -> None:
    """What is measured; `usual` says what happens where an option is not given."""
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="COLUMN",
        help=f"show accuracy by a column of the data; may be repeated; default: {usual['by']}",
    )
    parser.add_argument(
        "--traces",
        metavar="WHO",
        help="measure which steps of a judgment are right, where a checker can tell (pico); "
        f"default: {usual['traces']}",
    )
    parser.add_argument(
        "--bootstrap",
        type=words.positive,
        metavar="N",
        help=f"resamples for the 95%% intervals; default: {usual['bootstrap']}",
    )
    parser.add_argument("--json", action="store_true", help="print all figures, as JSON")


def _measures(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked to be measured; nothing else."""
    given = {name: getattr(arguments, name) for name in ("by", "traces", "bootstrap")}
    return {name: value for name, value in given.items() if value}


def _evaluate(arguments: argparse.Namespace) -> int:
    begin_alone()
    from ste_jax.commands.evaluate import evaluate_benchmark

    result = evaluate_benchmark(
        _judge_options(arguments),
        arguments.benchmark,
        arguments.data,
        arguments.out,
        _measures(arguments),
    )
    return _show(result, arguments)


def _add_score(commands: Any) -> None:
    parser = new_command(
        commands,
        "score",
        _score,
        "metrics again from stored judgments, no model",
        examples=("ste score out/same-task --by kind",),
    )
    parser.add_argument("out", metavar="DIR", help="what `ste evaluate --out` wrote")
    _add_measures(parser, **dict.fromkeys(("by", "traces", "bootstrap"), "as `ste evaluate` did"))


def _score(arguments: argparse.Namespace) -> int:
    begin_alone()  # it asks no model, but loads what would
    from ste_jax.commands.evaluate import score_again

    return _show(score_again(arguments.out, _measures(arguments)), arguments)


def _show(result: Any, arguments: argparse.Namespace) -> int:
    from ste_jax.commands.evaluation_text import as_json, as_text

    if arguments.json:
        say(as_json(result))
    else:
        say(as_text(result, arguments.out), fit=True)
    return 0


def _add_import(commands: Any) -> None:
    parser = new_command(
        commands,
        "import",
        _import,
        "read a model and save it as an Orbax checkpoint",
        examples=("ste import hf:HuggingFaceTB/SmolLM2-135M-Instruct checkpoints/smollm2",),
    )
    parser.add_argument("source", metavar="SOURCE", help=MODEL)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the directory to write")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="bfloat16",
        help="default: %(default)s",
    )


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
        examples=("ste export runs/pico hf/pico-judge --dtype bfloat16",),
    )
    _add_model(parser)
    parser.add_argument("directory", metavar="HF_DIR", help="the directory to write")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="default: as the checkpoint has it; bfloat16 for what is no checkpoint of ours",
    )


def _export(arguments: argparse.Namespace) -> int:
    begin_alone()
    from ste_jax.commands.export_model import export_model
    from ste_jax.pipeline.phases import phase_reports

    say(export_model(arguments.model, arguments.directory, phase_reports(), arguments.dtype))
    return 0
