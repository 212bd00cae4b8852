"""What a person types: help that suffices, and bad requests answered in one sentence."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys

import pytest
import yaml

from ste_jax.cli import _parser, main
from ste_jax.commands.words import with_values
from tests import tiny

BOTH = argparse.BooleanOptionalAction


def told(capsys, *words) -> tuple[int, str]:
    """(exit status, what was said on the error stream)."""
    status = main(list(words))
    return status, capsys.readouterr().err


def one_sentence(text: str) -> bool:
    """The error is one line and the last; what stands before is progress."""
    lines = text.strip().splitlines()
    told = [line for line in lines if line.startswith("ste: ")]
    return told == lines[-1:] and "Traceback" not in text


@pytest.fixture
def config(tmp_path):
    """A tiny run's config, as a dict to change and a function that writes it."""
    values = tiny.config(tmp_path)

    def write() -> str:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return values, write


def test_every_command_has_help():
    shown = subprocess.run(
        [sys.executable, "-m", "ste_jax.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name in ("run", "select", "pair", "annotate", "finetune", "judge", "generate", "evaluate"):
        assert f"    {name}" in shown
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0


OF_MODELS = ("judge", "generate", "evaluate", "score", "import", "export")


@pytest.mark.parametrize("name", OF_MODELS)
def test_help_has_every_default_and_examples_that_can_be_typed(name):
    (commands,) = [each for each in _parser()._actions if each.choices]
    parser = commands.choices[name]
    places = {each.metavar: each.help for each in parser._actions if not each.option_strings}
    assert all(places.values()), places
    for option in parser._actions:
        simple = option.required or (option.nargs == 0 and not isinstance(option, BOTH))
        assert simple or "default: " in option.help, option.option_strings
    examples = [line for line in parser.format_help().splitlines() if line.startswith("  ste ")]
    assert examples
    for example in examples:
        typed = shlex.split(example)[1:]
        assert typed[0] == name
        arguments, left = _parser().parse_known_args(with_values(typed))
        assert not left and arguments.debug is False


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("finetune.epoks=3", "finetune.epoks"),
        ("finetune.epochs=x", "finetune.epochs"),
        ("pool.path=[absent.jsonl]", "absent.jsonl"),
        ("model=absent-model", "absent-model"),
        ("roles.judge.template=absent.yaml", "absent.yaml"),
        ("finetune.mesh.tensor=3", "tensor=3"),
        ("roles.judge.sampling.top_p=0", "top_p=0.0 is out of its range; it must be above 0"),
        ("roles.judge.sampling.temperature=-1", "temperature=-1.0 is out of its range"),
        ("roles.judge.sampling.temperature=0", "annotate.samples=4"),
        ("evaluate.greedy=true", "evaluate.votes="),
        ("finetune.epochs=0", "finetune.epochs"),
        ("finetune.batch_rows=3", "finetune.batch_rows"),
        ("decoding.new_buckets=[24, 4]", "rising"),
        ("roles.modify.template=absent.yaml", "absent.yaml"),
        ("roles.judge.sampling.max_new_tokens=25", "largest of decoding.new_buckets, 24"),
        ("roles.modify.sampling.max_new_tokens=14", "roles.respond.sampling.max_new_tokens=14"),
        ("finetune.sequence_length=2", "finetune.sequence_length=2 is less than"),
    ],
)
def test_wrong_requests(config, tmp_path, capsys, override, says):
    _, write = config
    status, error = told(capsys, "run", write(), override, "--dir", str(tmp_path / "run"))
    assert status == 2, error
    assert says in error and one_sentence(error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("empty", ["", " ", "\t"])
@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["run", "{}"], "config"),
        (["run", "pico", "--dir", "x", "{}"], "overrides"),
        (["run", "pico", "{}", "--dir", "x"], "overrides"),
        (["run", "pico", "--dir", "{}"], "dir"),
        (["select", "{}"], "run"),
        (["report", "{}"], "run"),
        (["score", "{}"], "out"),
        (["import", "{}", "x"], "source"),
        (["import", "pico", "{}"], "checkpoint"),
        (["export", "pico", "{}"], "directory"),
        (["judge", "{}", "--instruction", "", "--a", "", "--b", ""], "model"),
        (["judge", "pico", "--instruction=", "--a=", "--b=", "--template", "{}"], "template"),
        (["generate", "pico", "--prompts", "{}", "--out", "x"], "prompts"),
        (["generate", "pico", "--prompts", "x", "--out", "{}"], "out"),
        (["evaluate", "pico", "--benchmark", "{}", "--data", "x", "--out", "x"], "benchmark"),
        (["evaluate", "pico", "--benchmark", "pairs", "--data={}", "--out", "x"], "data"),
    ],
)
def test_a_word_that_says_nothing(words, place, empty, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, error = told(capsys, *(word.replace("{}", empty) for word in words))
    assert status == 2 and f"an empty word is given for {place}:" in error and one_sentence(error)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_not_a_run(config, tmp_path, capsys):
    _, write = config
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    status, error = told(capsys, "run", write(), "--dir", str(tmp_path / "mine"))
    assert status == 2 and "something else than a run" in error
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    status, error = told(capsys, "annotate", str(tmp_path / "mine"))
    assert status == 2 and "is not a run" in error


def test_a_pool_without_a_usable_row_fails_and_says_why(config, tmp_path, capsys):
    values, write = config
    pool = tmp_path / "bad.jsonl"
    pool.write_text("{broken\n")
    values["pool"]["path"] = [str(pool)]
    status, error = told(capsys, "run", write(), "--dir", str(tmp_path / "run"))
    assert status == 1 and "bad.jsonl, line 1: not JSON" in error and one_sentence(error)


def test_a_model_directory_with_a_missing_file(config, tmp_path, capsys):
    _, write = config
    path = write()
    (tmp_path / "model" / "model.safetensors").unlink()
    status, error = told(capsys, "run", path, "--dir", str(tmp_path / "run"))
    assert status == 2 and "safetensors" in error and one_sentence(error)


def test_generate_writes_a_row_per_sample_and_never_overwrites(tmp_path, capsys):
    model = tiny.write_model(tmp_path / "model")
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(
        '{"id": "x", "prompt": " apple"}\n{"messages": [{"role": "user", "content": " b"}]}\n'
    )
    words = ["generate", str(model), "--prompts", str(prompts), "--out", str(out)]
    words += ["--samples", "2", "--max-new-tokens", "8", "--groups", "2"]
    assert main(words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["sample"]) for row in rows] == [("x", 0), ("x", 1), ("2", 0), ("2", 1)]
    for row in rows:
        assert set(row) == {"id", "sample", "text", "n_tokens", "logprob", "finish_reason"}
        assert row["logprob"] < 0 < row["n_tokens"] <= 8
    capsys.readouterr()
    assert main(words) == 0
    assert "done already, 4 samples of 2 prompts" in capsys.readouterr().out
    (tmp_path / "out.jsonl.made.json").unlink()
    status, error = told(capsys, *words)
    assert status == 2 and "is there already" in error


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "in.jsonl:1"),
        ('{"id": 1}', "neither"),
        ('{"messages": [1]}', "role"),
        ('{"messages": []}', "in.jsonl:1"),
        ('{"messages": [{"role": "user", "content": null}]}', "text as `role`"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ("", "no prompt"),
    ],
)
def test_generate_names_the_line_that_is_no_prompt(tmp_path, capsys, line, says):
    prompts = tmp_path / "in.jsonl"
    prompts.write_text(line + "\n")
    words = ["generate", "nowhere", "--prompts", str(prompts), "--out", str(tmp_path / "out")]
    status, error = told(capsys, *words)
    assert status == 2 and says in error and one_sentence(error)


def test_evaluate_judge_and_score_on_a_checkpoint_of_a_run(finished, tmp_path, capsys):
    run, _ = finished
    data, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    rows = [
        {
            "instruction": f" apple {n}",
            "response_a": " house",
            "response_b": f" igloo {n}",
            "label": "A",
        }
        for n in range(12)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    checkpoint = str(run.iteration(1).checkpoint)
    words = ["evaluate", checkpoint, "--benchmark", "pairs", "--data", str(data), "--out", str(out)]
    words += ["--votes", "3", "--temperature", "1.0", "--groups", "2"]
    assert main(words) == 0
    first = json.loads((out / "evaluation.json").read_text())
    assert first["n"] == 12 and first["votes"] == 3
    (out / "evaluation.json").write_text(
        json.dumps({key: first[key] for key in ("benchmark", "model", "judge")})
    )
    assert main(["score", str(out)]) == 0
    assert json.loads((out / "evaluation.json").read_text()) == first
    capsys.readouterr()
    words = ["judge", str(run.root), "--instruction", " apple", "--a", " house", "--b", " igloo"]
    assert main([*words, "--votes", "2", "--temperature", "1.0"]) == 0
    said = capsys.readouterr().out
    assert "answer a shown first, sample 0" in said and "answer a shown second, sample 1" in said
    assert "votes: a" in said


def test_a_config_is_printed_and_what_there_is_is_listed(capsys):
    assert main(["config", "pico"]) == 0
    assert "\n  train: 600  # default: 1000\n" in capsys.readouterr().out
    assert main(["config", "--list"]) == 0
    assert "\npico " in capsys.readouterr().out
    assert main(["config", "--templates"]) == 0
    assert "small-judge" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["config", "pic0"], "did you mean pico?"),
        (["config"], "--list"),
        (["config", "pico", "--list"], "--list"),
    ],
)
def test_a_config_that_is_not_there_is_refused_with_a_hint(words, says, capsys):
    status, said = told(capsys, *words)
    assert status == 2 and says in said and one_sentence(said)
