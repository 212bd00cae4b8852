"""The recipe with a judge of scores: trained and evaluated by the same stages, and asked again as
it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from etils import epath

from ste_jax.checkpoints.checkpoint import read_card
from ste_jax.cli import main
from ste_jax.pipeline.phases import phase_reports
from ste_jax.reporting.funnel import check_sums, funnel
from ste_jax.run.layout import RunDir
from tests import tiny
from tests.compiling import one_device


def config_of_scores(root: Path, **changes: Any) -> dict[str, Any]:
    """The tiny recipe with a judge that scores each answer by itself."""
    values = tiny.config(root, judge__task="pointwise", judge__force_text="\n [[", **changes)
    scores = range(1, 11)
    words = {f"▁[[{score}]]": 0.6 for score in scores} | {f"{score}]]": 2.0 for score in scores}
    tiny.write_model(root / "model", words=words, verdicts="[AB]|10|[1-9]", seed=2)
    text = {"user": " {instruction}\n {answer}"}
    (root / "templates" / "judge.yaml").write_text(yaml.safe_dump(text))
    return values


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    root = tmp_path_factory.mktemp("scored")
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(config_of_scores(root, iterations=1)))
    with one_device():
        assert main(["run", str(path), "--dir", str(root / "run")]) == 0
    return RunDir(epath.Path(root / "run"))


def test_pairs_of_scores_in_the_right_order_are_learnt(scored: RunDir) -> None:
    here = scored.iteration(1)
    prompts = {row.id: row for row in here.prompts.rows()}
    judgments = list(here.judgments.rows())
    assert {row.verdict for row in judgments} >= {None, "10"}
    assert any(row.forced for row in judgments)
    learnt: dict[str, dict[str, int]] = {}
    for row in here.training.rows():
        prompt = prompts[row.prompt_id]
        learnt.setdefault(prompt.pair_id, {})[prompt.order] = int(row.label)
    assert len(learnt) >= 2
    assert all(scores["chosen"] > scores["rejected"] for scores in learnt.values())
    by_id = {row.id: row for row in judgments}
    samples: dict[str, set[int]] = {}
    for row in here.training.rows():
        pair_id = prompts[row.prompt_id].pair_id
        samples.setdefault(pair_id, set()).add(by_id[row.judgment_id].sample)
    assert all(len(of) == 1 for of in samples.values())


def test_the_judge_is_measured_and_shown(scored: RunDir) -> None:
    here = scored.iteration(1)
    found = json.loads(here.evaluation.read_text())
    assert found["n_prompts"] == 2 * found["n"] >= 8
    assert 0 <= found["accuracy"] < 1 and found["forced"] > 0
    assert "consistent_accuracy" not in found
    assert check_sums(funnel(scored, phase_reports()), phase_reports()) == []
    page = scored.report.read_text()
    assert "each answer scored by itself" in page and "Each answer by itself" in page
    assert "both orders" not in page
    assert read_card(here.checkpoint)["provenance"]["judge"]["knobs"]["task"] == "pointwise"


def test_going_on_makes_nothing_anew(scored: RunDir) -> None:
    tables = [scored.iteration(1).judgments, scored.iteration(1).training]
    before = [table.path(0).stat().mtime for table in tables]
    events = len((scored.root / "metrics.jsonl").read_text().splitlines())
    with one_device():
        assert main(["run", str(scored.config), "--dir", str(scored.root)]) == 0
    assert [table.path(0).stat().mtime for table in tables] == before
    assert len((scored.root / "metrics.jsonl").read_text().splitlines()) == events


def test_the_trained_judge_is_asked_as_it_was_trained(
    scored: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(scored.iteration(1).checkpoint)
    words = ["--instruction", " apple bread", "--a", " chair dance", "--b", " early flute"]
    usual = ["--max-new-tokens", "12", "--seed", "3"]
    with one_device():
        assert main(["judge", model, *words, *usual, "--votes", "4",
                     "--temperature", "1"]) == 0  # fmt: skip
    told = capsys.readouterr().out
    assert told.count("--- answer a, sample") == told.count("--- answer b, sample") == 4
    assert told.count("=> scores ") == 4 and "votes: a " in told
    data = tmp_path / "pairs.jsonl"
    rows = [
        {"instruction": " apple", "response_a": " bread", "response_b": f" {word}", "label": "A"}
        for word in ("chair", "dance", "early")
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    out = str(tmp_path / "out")
    asked = ["evaluate", model, "--benchmark", "pairs", "--data", str(data)]
    with one_device():
        assert main([*asked, "--out", out, *usual]) == 0
    found = json.loads((Path(out) / "evaluation.json").read_text())
    assert (found["n"], found["n_prompts"]) == (3, 6) and "consistent_accuracy" not in found
    assert main(["export", model, str(tmp_path / "hf")]) == 0
    assert "The score is a whole number" in (tmp_path / "hf" / "README.md").read_text()
