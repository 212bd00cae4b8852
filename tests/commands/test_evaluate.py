"""`ste evaluate` and `ste score` measure what a run measures on its labelled sets."""

from __future__ import annotations

import json
import shutil

import pytest

from ste_jax.cli import main
from ste_jax.commands import evaluate as evaluating
from tests import tiny
from tests.test_cli import one_sentence, told


@pytest.fixture(scope="module")
def evaluated(finished, tmp_path_factory):
    """What `ste evaluate --by section --bootstrap 100` wrote: (its directory, its words)."""
    run, _ = finished
    root = tmp_path_factory.mktemp("evaluated")
    data = root / "pairs.jsonl"
    rows = [
        {
            "instruction": f" {word}",
            "response_a": " house",
            "response_b": f"{word} igloo",
            "label": "AB"[number % 2],
            "section": number % 2,
            "length": len(word),
        }
        for number, word in enumerate(tiny.WORDS[1:7])
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", str(run.iteration(1).checkpoint), "--benchmark", "pairs", "--groups", "2"]
    words += ["--data", str(data), "--by", "section", "--bootstrap", "100", "--out"]
    assert main([*words, str(root / "out")]) == 0
    return root / "out", words


def figures(directory):
    return json.loads((directory / "evaluation.json").read_text())


def test_accuracy_is_told_apart_by_columns_and_scored_so_again(evaluated, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(evaluated[0], out)
    first = figures(out)
    assert {name: of["n"] for name, of in first["by"]["section"].items()} == {"0": 3, "1": 3}
    shares = [of["accuracy"] for of in first["by"]["section"].values()]
    assert sum(shares) / 2 == pytest.approx(first["accuracy"])
    assert "meanings" not in first and "step_formed" not in first
    assert main(["score", str(out), "--by", "length", "--by", "section", "--bootstrap", "70"]) == 0
    other = figures(out)
    assert set(other["by"]) == {"length", "section"} and other["accuracy"] == first["accuracy"]
    assert sum(of["n"] for of in other["by"]["length"].values()) == 6
    assert main(["score", str(out)]) == 0  # as `ste evaluate` was asked
    assert figures(out) == first


def test_what_an_earlier_version_evaluated_is_measured_otherwise_without_asking(
    evaluated, tmp_path, capsys, monkeypatch
):
    out, words = tmp_path / "out", evaluated[1]
    shutil.copytree(evaluated[0], out)
    shutil.rmtree(out / "pairs")
    for name in ("benchmark.json", "benchmark.json.copy"):
        ours = json.loads((out / name).read_text())
        ours.pop("measures", None)
        (out / name).write_text(json.dumps(ours))
    assert main(["score", str(out)]) == 0
    assert "by" not in figures(out)
    status, error = told(capsys, "score", str(out), "--by", "section")
    assert status == 2 and "`ste evaluate` again" in error and one_sentence(error)
    monkeypatch.setattr(evaluating, "open_judge", lambda *_: pytest.fail("a judge is opened"))
    assert main([*words, str(out)]) == 0
    assert figures(out) == figures(evaluated[0])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--by", "sextion"], "the column 'sextion'"),
        (["--traces", "pico"], "traces: pico"),
        (["--traces", "nobody"], "nobody"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_judge_is_asked(
    evaluated, tmp_path, capsys, more, says
):
    words, out = evaluated[1], tmp_path / "out"
    status, error = told(capsys, *words, str(out), *more)
    assert status == 2 and says in error and "pairs.jsonl" in error and one_sentence(error)
    assert not out.exists()
    status, error = told(capsys, "score", str(evaluated[0]), *more)
    assert status == 2 and says in error and str(evaluated[0]) in error


def test_resamples_are_a_whole_number_above_0(evaluated, tmp_path):
    with pytest.raises(SystemExit) as error:
        main([*evaluated[1], str(tmp_path / "out"), "--bootstrap", "0"])
    assert error.value.code == 2
