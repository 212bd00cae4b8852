"""Does `ste init` write a config that can be run, and does it refuse what cannot?"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ste_jax.cli import main
from ste_jax.commands import proposal
from ste_jax.commands.init import ask, look_at_data, on_terminal
from ste_jax.config.load import load_config, read_config, shipped_configs
from ste_jax.config.schema import PoolKnobs
from ste_jax.system.errors import RequestError
from tests import tiny

LLAMA = "hf:meta-llama/Llama-3.1-8B-Instruct"


def rows(path: Path, count: int) -> str:
    lines = (json.dumps({"instruction": f"What is {n} and {n}?"}) for n in range(count))
    path.write_text("\n".join(lines))
    return str(path)


def init(tmp_path: Path, model: str, device: str, hours: str, data: str) -> Path:
    out = tmp_path / "mine.yaml"
    words = ["--model", model, "--device", device, "--hours", hours, "--data", data]
    assert main(["init", *words, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("device", [device for device in proposal.PACES if device != "cpu"])
@pytest.mark.parametrize("model", [LLAMA, "hf:google/gemma-3-12b-it", "hf:x/Small-360M"])
def test_a_config_is_written_for_every_device(model: str, device: str, tmp_path: Path) -> None:
    config = load_config(str(init(tmp_path, model, device, "6", "owner/data")))
    assert (config.model, config.pool.path, config.name) == (model, ("owner/data",), "mine")
    if model.endswith("-it"):
        base = read_config(shipped_configs()[f"gemma-3-12b-{device}"])
        assert config.decoding == base.decoding and config.finetune == base.finetune


def test_another_model_gets_half_the_room_of_the_planned_one(tmp_path: Path) -> None:
    planned = read_config(shipped_configs()["llama-3.1-8b-v5e-8"]).decoding.groups
    found = load_config(str(init(tmp_path, "hf:Qwen/Qwen2.5-3B", "v5e-8", "6", "owner/data")))
    assert found.decoding.groups == planned // 2


def test_more_hours_give_more_instructions_and_few_rows_fewer(tmp_path: Path) -> None:
    def train(hours: float, rows: int | None) -> int:
        base = read_config(shipped_configs()["llama-3.1-8b-v5e-8"])
        return proposal.sized(base, 8e9, "v5e-8", hours, rows).select.train

    assert 100 <= train(0.5, None) < train(4, None) < train(12, None)
    assert train(12, 300) == 200
    with pytest.raises(RequestError, match="at least 88"):
        train(12, 80)
    with pytest.raises(RequestError, match="--hours 1"):
        train(0.001, None)


def test_the_hours_of_the_shipped_configs_are_about_those_that_they_state() -> None:
    for name, least, most in (("smollm2-135m", 0.2, 0.6), ("smollm2-135m-large", 1, 2.5)):
        config = read_config(shipped_configs()[name])
        assert least < proposal.hours_of(config, 135e6, proposal.PACES["cpu"]) < most


def test_a_model_in_files_is_measured_by_its_files(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model")
    data = rows(tmp_path / "rows.jsonl", 200)
    config = load_config(str(init(tmp_path, str(model), "cpu", "5", data)))
    assert config.roles.judge.template == "small-judge"
    assert config.select.train == 100  # what 200 rows allow


def test_a_column_of_another_name_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "rows.csv", tmp_path / "mine.yaml"
    data.write_text("body\n" + "\n".join(f"What is {n} and {n}?" for n in range(200)))
    words = ["init", "--model", LLAMA, "--device", "v5e-8", "--hours", "3", "--data", str(data)]
    assert main([*words, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "the row has body; the first line of a CSV is taken as the columns' names" in said
    assert said.count("--field") == 1 and "pool.instruction_field" not in said and not out.exists()
    assert main([*words, "--out", str(out), "--field", "boty"]) == 2
    assert "there is no field boty; the row has body" in capsys.readouterr().err
    assert main([*words, "--out", str(out), "--field", "body"]) == 0
    assert load_config(str(out)).pool.instruction_field == "body"


def test_the_column_that_is_taken_is_said_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.csv"
    data.write_text(
        "prompt,question\n" + "\n".join(f"?{n % 190},What is {n} and {n}?" for n in range(200))
    )
    config = load_config(str(init(tmp_path, LLAMA, "v5e-8", "3", str(data))))
    said = capsys.readouterr().out
    assert said.startswith("The instruction is column prompt; the first: '?0'. Another column is ")
    assert "there are question." in said and config.pool.instruction_field == "prompt"
    assert look_at_data(config.pool).rows == 190  # the same text again is none more
    mixed = (f"Name a lake,Note {n}\n,Name a river {n}" for n in range(200))
    data.write_text("prompt,Question\n" + "\n".join(mixed))
    pool = PoolKnobs(path=(str(data),))
    assert sorted(look_at_data(pool).fields) == ["Question", "prompt"]
    assert look_at_data(pool).rows == 201


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        (LLAMA, 8e9),
        ("hf:google/gemma-3-12b-it", 12e9),
        ("hf:Qwen/Qwen2.5-0.5B", 5e8),
        ("hf:x/SmolLM2-135M-Instruct", 135e6),
        ("hf:Qwen/Qwen3-30B-A3B", 30e9),
        ("hf:openai/gpt2", None),
        ("hf:x/v2b-model", None),
    ],
)
def test_the_size_in_a_name(name: str, parameters: float | None) -> None:
    assert proposal.size_in(name) == parameters


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({}, "needs --model, --data, --device, --hours"),
        ({"device": "v9"}, "known are cpu, v5e-8"),
        ({"model": "pico"}, "knows the tasks of its own small world"),
        ({"model": "hf:x/y-70B"}, "too large|more than one v5e-8"),
        ({"model": "hf:x/y"}, "does not say how many parameters"),
        ({"device": "cpu"}, "too slow on CPUs"),
        ({"hours": "x"}, "not a number of hours"),
        ({"hours": "nan"}, "not a number of hours"),
        ({"data": "absent.jsonl"}, "does not exist"),
    ],
)
def test_what_cannot_be_is_refused(
    words: dict[str, str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = {"model": LLAMA, "data": "builtin", "device": "v5e-8", "hours": "3"}
    given = {**usual, **words} if words else {}
    out = tmp_path / "mine.yaml"
    pairs = [word for name, value in given.items() for word in (f"--{name}", value)]
    assert main(["init", *pairs, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert any(part in said for part in says.split("|")) and not out.exists()


def test_a_file_that_is_there_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = init(tmp_path, LLAMA, "v5e-8", "3", "builtin")
    before = out.read_text()
    words = ["init", "--model", LLAMA, "--data", "builtin", "--device", "v5e-8", "--hours", "9"]
    assert main([*words, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err and out.read_text() == before


def test_what_is_not_given_is_asked() -> None:
    asked = []

    def prompt(question: str) -> str:
        asked.append(question)
        return {"O": "4", "W": ""}[question[0]] if question[0] != "A" else "2"

    given = {"model": LLAMA, "data": "builtin", "device": "v5e-8", "hours": None, "out": None}
    found = ask(given, prompt)
    assert [each.split("?")[0] for each in asked] == [
        "About how many hours may it take",
        "Where is the config to be written",
    ]
    assert found.hours == 2 and str(found.out) == "llama-3.1-8b-instruct.yaml"


def test_a_wrong_answer_is_refused_at_once_and_the_question_comes_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (taken := tmp_path / "taken.yaml").touch()
    data = tmp_path / "rows.csv"
    data.write_text("body\n" + "\n".join(f"What is {n} and {n}?" for n in range(200)))
    answers = {
        "Which model": ["", "pico", "hf:x/y", "hf:Qwen/Qwen3-8B"],
        "Which instructions": ["absent.jsonl", str(data), str(data)],
        "In which column": ["boty", "body"],
        "On what": ["v9", "cpu", "gpu-80gb"],
        "About how many": ["x", "0.001", "9"],
        "Where is": [str(taken), ""],
    }
    left = {start: list(each) for start, each in answers.items()}

    def prompt(question: str) -> str:
        (start,) = (start for start in left if question.startswith(start))
        return left[start].pop(0)

    found = ask(dict.fromkeys(("model", "data", "device", "hours", "out", "field")), prompt)
    assert not any(left.values())
    assert (found.model, found.data, found.field) == ("hf:Qwen/Qwen3-8B", str(data), "body")
    assert (found.device, found.hours, str(found.out)) == ("gpu-80gb", 9, "qwen3-8b.yaml")
    said = capsys.readouterr().err
    for part in (
        "--model is not said",
        "its own small world",
        "how many parameters",
        "does not exist",
        "there is no field boty",
        "--device v9 is not known",
        "too slow on CPUs",
        "--hours x is not a number",
        "are too few for this model",
        "is there already",
    ):
        assert said.count(part) == 1, part
    assert said.count("the row has body") == 3  # the data twice, and the wrong column


def test_what_is_given_is_refused_before_anything_is_asked() -> None:
    given = {"model": None, "data": None, "device": None, "hours": "x", "out": None}
    with pytest.raises(RequestError, match="--hours x"):
        ask(given, lambda question: pytest.fail(question))


def test_questions_may_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    given = dict.fromkeys(("model", "data", "device", "hours", "out"))
    with pytest.raises(RequestError, match="the questions were left"):
        ask(given, on_terminal())
