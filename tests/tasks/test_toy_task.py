"""A way of judging that is defined here alone goes from the pool to the evaluation.

A pair is shown three times: in both orders, and the better answer beside itself. So there are three
verdicts, and each is right once: the first is better, the second is, they are the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from etils import epath

from ste_jax.checkpoints.checkpoint import read_card
from ste_jax.cli import main
from ste_jax.pipeline.phases import phase_reports
from ste_jax.prompts.render import Places, Template, transcript
from ste_jax.records import Pair
from ste_jax.reporting.funnel import check_sums, funnel
from ste_jax.run.layout import RunDir
from ste_jax.tasks import TASKS, Forcing, Task, Verdict, Wording
from tests import tiny
from tests.compiling import one_device

FIRST, SECOND, SAME = VERDICTS = ("apple", "bread", "chair")


def show(pair: Pair, template: Template) -> Iterator[tuple[str, dict[str, str], str]]:
    shown = {
        "better first": (pair.chosen, pair.rejected, FIRST),
        "worse first": (pair.rejected, pair.chosen, SECOND),
        "twice": (pair.chosen, pair.chosen, SAME),
    }
    for order, (one, other, verdict) in shown.items():
        asked = transcript(pair.messages)
        yield order, {"instruction": asked, "answer_a": one, "answer_b": other}, verdict


def parse(text: str, finish_reason: str) -> Verdict:
    """The last of the three words."""
    words = [word for word in text.split() if word in VERDICTS]
    return Verdict(words[-1], None) if words else Verdict(None, "no_verdict")


def lines_of_verdict(text: str) -> list[int]:
    lines = re.finditer(rf"^ *(?:{'|'.join(VERDICTS)}) *$", text, re.MULTILINE)
    return [line.end() for line in lines]


PLACES = frozenset({"instruction", "answer_a", "answer_b"})
TOY = Task(
    name="toy",
    version=1,
    template="judge",
    places=Places("judge", known=PLACES, needed=PLACES),
    orders=("better first", "worse first", "twice"),
    answers=2,
    show=show,
    parse=parse,
    lines_of_verdict=lines_of_verdict,
    decided=VERDICTS,
    classes=VERDICTS,
    forcing=Forcing(text="\n verdict:", stop=(), new_tokens=4),
    shares={"share_same": SAME},
    wording=Wording(
        asked="each judged three times",
        chance="half",
        consistent="three times",
        heading=lambda question: f"Shown {question.prompts[0].order}",
        shares={"share_same": "the same"},
        to_ask="The last word is the verdict.",
    ),
)


def test_a_task_of_a_test_goes_through_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TASKS, "toy", TOY)
    path = tmp_path / "run.yaml"
    values = tiny.config(tmp_path, judge__task="toy", judge__force_text="", iterations=1)
    tiny.write_model(tmp_path / "model", **{f"▁{word}": 1.6 for word in VERDICTS})
    path.write_text(yaml.safe_dump(values))
    with one_device():
        assert main(["run", str(path), "--dir", str(tmp_path / "run")]) == 0
    run = RunDir(epath.Path(tmp_path / "run"))
    here = run.iteration(1)

    prompts = {row.id: row for row in here.prompts.rows()}
    assert Counter(Counter(row.pair_id for row in prompts.values()).values()).keys() == {3}
    judgments = list(here.judgments.rows())
    assert {row.verdict for row in judgments} >= set(VERDICTS)
    assert any(row.forced for row in judgments)
    learnt = list(here.training.rows())
    kept = Counter(row.label for row in learnt)
    assert set(kept) == set(VERDICTS) and len(set(kept.values())) == 1 and kept[SAME] >= 2
    assert all(row.label == prompts[row.prompt_id].label for row in learnt)

    found = json.loads(here.evaluation.read_text())
    assert found["n_prompts"] == 3 * found["n"] > 20
    assert 0 < found["accuracy"] < 1 and 0 < found["share_same"] < 1
    assert read_card(here.checkpoint)["provenance"]["judge"]["knobs"]["task"] == "toy"
    assert check_sums(funnel(run, phase_reports()), phase_reports()) == []
    page = run.report.read_text()
    assert "each judged three times" in page and "right three times" in page
    assert "kept chair" in capsys.readouterr().out
