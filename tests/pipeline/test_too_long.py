"""What has no room is said to have none, is in no figure, and where nothing has room work fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ste_jax.cli import main
from ste_jax.records import Judgment
from ste_jax.run.tables import Table
from tests import tiny

SETTINGS = ("--max-new-tokens", "8", "--groups", "2", "--group-size", "1")
LONG = " apple" * 600


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of 512 positions."""
    return str(tiny.write_model(tmp_path_factory.mktemp("tiny") / "model"))


def write_pairs(path: Path, *instructions: str) -> str:
    rows = [
        {"instruction": each, "response_a": " apple", "response_b": " bread", "label": "AB"[n % 2]}
        for n, each in enumerate(instructions)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def evaluate(model: str, data: str, out: Path, *more: str) -> int:
    words = ["evaluate", model, "--benchmark", "pairs", "--data", data, "--out", str(out)]
    return main([*words, *SETTINGS, *more])


def test_a_judge_that_can_be_asked_in_no_order_fails(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["judge", model, "--instruction", LONG, "--a", " apple", "--b", " bread", *SETTINGS]
    assert main(asked) == 1
    said = capsys.readouterr()
    assert "the judge could not be asked" in said.err and "512 positions" in said.err
    assert "votes" not in said.out


@pytest.mark.parametrize("command", ["judge", "evaluate", "generate"])
def test_more_new_tokens_than_the_model_has_places_are_refused_at_once(
    command: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": " apple"}\n')
    words = {
        "judge": ["--instruction", " apple", "--a", " apple", "--b", " bread"],
        "evaluate": ["--benchmark", "pairs", "--data", write_pairs(tmp_path / "p.jsonl", " apple"),
                     "--out", str(tmp_path / "out")],
        "generate": ["--prompts", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "o.jsonl")],
    }  # fmt: skip
    assert main([command, model, *words[command], "--max-new-tokens", "512"]) == 2
    assert "context of 512: lower it, to 128 for instance" in capsys.readouterr().err


def test_an_evaluation_of_which_nothing_could_be_asked_has_no_figure(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_pairs(tmp_path / "long.jsonl", LONG, f"{LONG} bread"), tmp_path / "out"
    for _ in range(2):  # run again, it says the same
        assert evaluate(model, data, out) == 1
        said = capsys.readouterr()
        assert "not one of the 4 judgments could be asked for" in said.err
        assert "accuracy" not in said.out
        assert not (out / "evaluation.json").exists()


def test_what_does_not_fit_is_counted_beside_the_figures(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = write_pairs(tmp_path / "short.jsonl", " apple", " chair")
    mixed = write_pairs(tmp_path / "mixed.jsonl", " apple", " chair", LONG)
    found: dict[str, dict[str, Any]] = {}
    for name, data in {"short": short, "mixed": mixed}.items():
        assert evaluate(model, data, tmp_path / name, "--json") == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["mixed"]["n"] == 3 and found["mixed"]["n_too_long"] == 1
    assert found["short"]["n"] == 2 and found["short"]["n_too_long"] == 0
    for share in ("accuracy", "consistent_accuracy", "unparsed", "share_a"):
        assert found["mixed"][share] == found["short"][share]
    rows = list(Table(tmp_path / "mixed" / "judgments", Judgment, 8).rows())  # type: ignore[arg-type]
    assert sorted(row.failure == "too_long" for row in rows) == [False] * 4 + [True] * 2
    assert all("positions" in row.text for row in rows if row.failure == "too_long")
    assert main(["score", str(tmp_path / "mixed")]) == 0
    shown = capsys.readouterr().out
    assert "warning: 1 of 3 pairs were not asked" in shown and "512 positions" in shown
