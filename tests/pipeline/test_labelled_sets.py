"""Is every judge of a run measured on the labelled pairs that its config names?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from etils import epath

from ste_jax.cli import main
from ste_jax.commands.evaluate import SHARDS
from ste_jax.records import Judgment
from ste_jax.reporting.examples import labelled_examples, questions_right
from ste_jax.reporting.tables import iteration_table
from ste_jax.run.layout import RunDir
from ste_jax.run.tables import Table
from ste_jax.tasks import PAIRWISE
from tests import tiny
from tests.reports import REPORTS
from tests.test_cli import one_sentence, told


def write_pairs(path: Path, count: int) -> None:
    rows = [
        {
            "instruction": f" {first} {second}",
            "response_a": f" {second}",
            "response_b": f" {first}",
            "label": "AB"[number % 2],
            "section": f"s{number % 3}",
        }
        for number, (first, second) in enumerate(zip(tiny.WORDS, tiny.WORDS[1:], strict=False))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))


@pytest.fixture(scope="module")
def measured(finished, tmp_path_factory):
    """A copy of the finished run, measured on a set: (run, config file, data, words)."""
    run, config = finished
    root = tmp_path_factory.mktemp("labelled")
    shutil.copytree(run.root, root / "run")
    values = yaml.safe_load(config.read_text())
    data = root / "words.jsonl"
    write_pairs(data, 12)
    values["evaluate"]["sets"] = [{"name": "words", "data": str(data), "by": ["section"]}]
    path = root / "labelled.yaml"
    path.write_text(yaml.safe_dump(values))
    words = ["run", str(path), "--dir", str(root / "run")]
    assert main(words) == 0
    return RunDir(epath.Path(root / "run")), values, data, words


def test_every_judge_is_measured_on_the_set(measured):
    run, _, data, _ = measured
    for iteration in run.iterations():
        found = json.loads(iteration.evaluation.read_text())
        of = found["sets"]["words"]
        assert of["n"] == 12 and str(data) in of["what"]
        assert "constructed" in found["what"]
        assert {name: each["n"] for name, each in of["by"]["section"].items()} == {
            "s0": 4,
            "s1": 4,
            "s2": 4,
        }
        parts = [each["accuracy"] * each["n"] for each in of["by"]["section"].values()]
        assert sum(parts) / 12 == pytest.approx(of["accuracy"])
        assert len(list(iteration.labelled("words").judgments.rows())) == 2 * 12 * of["votes"]


def test_the_set_is_in_the_tables_and_in_the_report(measured):
    run, _, _, _ = measured
    rows = iteration_table(run, REPORTS)
    assert all(0 <= row["words_accuracy"] <= 1 for row in rows)
    assert "words_every_step_right" not in rows[0]
    report = run.report.read_text()
    assert "Accuracy on words" in report and "By section" in report


def test_pairs_more_are_judged_and_no_other_again(measured):
    run, _, data, words = measured
    before = {row.id for row in run.iteration(2).labelled("words").judgments.rows()}
    write_pairs(data, 14)
    asked = run.metrics.read_text().count('"work"')
    assert main(words) == 0
    after = {row.id for row in run.iteration(2).labelled("words").judgments.rows()}
    assert before < after
    votes = len(before) // 24
    assert len(after) == 2 * 14 * votes
    new = [json.loads(line) for line in run.metrics.read_text().splitlines() if '"work"' in line]
    assert sum(event["rows"] for event in new[asked:]) == 3 * 2 * 2  # three judges, two pairs


def test_judges_are_measured_greedily_where_that_is_asked_for(measured, tmp_path):
    run, _, data, words = measured
    copy = tmp_path / "run"
    shutil.copytree(run.root, copy)
    words = [*words[:-1], str(copy), "--yes", "evaluate.greedy=true", "evaluate.votes=1"]
    assert main(words) == 0
    judge = RunDir(epath.Path(copy)).iteration(2)
    alone = tmp_path / "alone"
    words = ["evaluate", str(judge.checkpoint), "--benchmark", "pairs", "--by", "section"]
    words += ["--data", str(data), "--out", str(alone), "--bootstrap", "200"]
    assert main(words) == 0  # one vote: greedy
    found = {each.prompt_id: each.text for each in judge.labelled("words").judgments.rows()}
    again = Table(epath.Path(alone) / "judgments", Judgment, SHARDS).rows()
    assert found == {each.prompt_id: each.text for each in again}
    sampled = {
        each.prompt_id: each.text
        for each in run.iteration(2).labelled("words").judgments.rows()
        if not each.sample
    }
    assert found.keys() == sampled.keys() and found != sampled
    knobs = yaml.safe_load(RunDir(epath.Path(copy)).config.read_text())["evaluate"]
    assert knobs["bootstrap"] == 200
    in_the_run = json.loads(judge.evaluation.read_text())["sets"]["words"]
    by_itself = json.loads((alone / "evaluation.json").read_text())
    about = {"what", "told", "meanings", "benchmark", "model", "judge"}
    figures = {key: value for key, value in in_the_run.items() if key not in about}
    assert figures == {key: value for key, value in by_itself.items() if key not in about}
    assert set(figures["by"]["section"]) == {"s0", "s1", "s2"}


def test_a_column_that_is_not_there_is_named(measured, tmp_path, capsys):
    _, values, data, _ = measured
    values = json.loads(json.dumps(values))
    values["evaluate"]["sets"][0]["by"] = ["sextion"]
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(values))
    status, error = told(capsys, "run", str(path), "--dir", str(tmp_path / "run"))
    assert status == 2 and "'sextion'" in error and str(data) in error and one_sentence(error)


def test_traces_that_nobody_can_check_are_refused(measured, tmp_path, capsys):
    run, values, data, _ = measured
    values = json.loads(json.dumps(values))
    values["evaluate"]["sets"][0]["traces"] = "pico"
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(values))
    copy = tmp_path / "run"
    shutil.copytree(run.root, copy)
    status, error = told(capsys, "run", str(path), "--dir", str(copy))
    assert status == 2 and "traces: pico" in error and str(data) in error and one_sentence(error)


@pytest.mark.parametrize("name", ["../up", "", "a b"])
def test_a_name_that_is_no_directory_is_refused(measured, tmp_path, capsys, name):
    _, values, _, _ = measured
    values = json.loads(json.dumps(values))
    values["evaluate"]["sets"][0]["name"] = name
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(values))
    status, error = told(capsys, "run", str(path), "--dir", str(tmp_path / "run"))
    assert status == 2 and "evaluate.sets" in error and one_sentence(error)


def test_pairs_worth_reading_are_those_that_the_last_judge_judges_otherwise(measured):
    run, *_ = measured
    first, *_, last = (
        questions_right(PAIRWISE, each.labelled("words")) for each in run.iterations()
    )
    better = {id for id in first if last[id] > first[id]}
    worse = {id for id in first if last[id] < first[id]}
    shown = labelled_examples(run, "words")
    assert {each.pair.id for each in shown} <= better | worse
    assert sum(each.pair.id in better for each in shown) == min(5, len(better))
    assert sum(each.pair.id in worse for each in shown) == min(2, len(worse))
    assert better | worse, "the set is to hold a pair that is judged otherwise"
    for each in shown:
        assert (each.first_right, each.last_right) == (first[each.pair.id], last[each.pair.id])
        assert [view.said.keys() for view in each.views] == [{0, 1, 2}] * 2
