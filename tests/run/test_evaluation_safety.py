"""No evaluation is lost, mixed with another, or taken for another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ste_jax import records
from ste_jax.cli import main
from ste_jax.system import files
from tests import running
from tests.comparing import tree
from tests.test_cli import one_sentence, told


@pytest.fixture
def evaluation(finished, tmp_path):
    """The words of an evaluation, and where it goes."""
    run, _ = finished
    data = tmp_path / "pairs.jsonl"
    row = {"instruction": " apple", "response_a": " house", "response_b": " igloo", "label": "A"}
    data.write_text(json.dumps(row) + "\n")
    out = tmp_path / "out"
    words = ["evaluate", str(run.root), "--benchmark", "pairs", "--data", str(data)]
    return [*words, "--out", str(out)], out


def test_of_two_evaluations_in_one_place_at_once_one_is_refused(evaluation, capsys):
    words, out = evaluation
    first = running.start(words)
    while not (out / "benchmark.json").exists():
        assert first.poll() is None
    status, error = told(capsys, *words)
    assert status == 2 and "another `ste` command is at work" in error
    output, _ = first.communicate(timeout=600)
    assert first.returncode == 0, output
    with files.held(out):
        for again in (words, ["score", str(out)]):
            status, error = told(capsys, *again)
            assert status == 2 and "another `ste` command is at work" in error


def test_an_evaluation_of_another_judge_or_other_settings_is_refused(
    finished, evaluation, tmp_path, capsys
):
    words, out = evaluation
    run, _ = finished
    assert main(words) == 0
    before = tree(out)
    other = tmp_path / "others.jsonl"
    other.write_text(Path(words[5]).read_text().replace(" apple", " bread"))
    for change, says in (
        ([words[0], str(run.iteration(0).checkpoint), *words[2:]], "another model is asked:"),
        ([*words, "--votes", "3"], "--votes is 3, not 1"),
        ([*words, "--max-new-tokens", "5"], "now --max-new-tokens is 5, not "),
        ([*words, "--data", str(other)], "now the pairs are others:"),
    ):
        status, error = told(capsys, *change)
        assert status == 2 and "name another --out" in error and one_sentence(error), error
        assert says in error, error
        assert tree(out) == before
    assert main(words) == 0
    capsys.readouterr()
    assert main(["score", str(out)]) == 0


@pytest.mark.parametrize("damage", [b"{", None])
def test_an_evaluation_that_lost_what_tells_of_it_is_gone_on_with(evaluation, capsys, damage):
    words, out = evaluation
    assert main(words) == 0
    mark, second = out / "benchmark.json", out / "benchmark.json.copy"
    whole, before = mark.read_bytes(), tree(out / "judgments")

    def lose(path: Path) -> None:
        path.write_bytes(damage) if damage else path.unlink()

    lose(mark)
    with files.held(out):
        there = tree(out)
        for again in (words, ["score", str(out)]):
            assert told(capsys, *again)[0] == 2
            assert tree(out) == there
    assert main(["score", str(out)]) == 0  # it asks no more than that one of them is there
    lose(mark) if mark.exists() else None
    lose(second)
    status, error = told(capsys, *words, "--votes", "3")
    assert status == 2 and "name another --out" in error
    assert main(words) == 0
    assert tree(out / "judgments") == before and mark.read_bytes() == whole


def test_judgments_of_two_judges_make_no_figure(finished, evaluation, capsys):
    words, out = evaluation
    assert main(words) == 0
    capsys.readouterr()
    (path,) = [
        path
        for path in (out / "judgments").iterdir()
        if records.open_parquet(path.read_bytes(), "x").metadata.num_rows
    ]
    rows = records.from_parquet(path.read_bytes(), records.Judgment, "x")
    mixed = [vars(rows[0]) | {"judge": "another"}, vars(rows[1])]
    made = [records.Judgment(**row) for row in mixed]
    path.write_bytes(records.to_parquet(made, records.Judgment))
    status, error = told(capsys, "score", str(out))
    assert status == 1 and "two judges" in error
