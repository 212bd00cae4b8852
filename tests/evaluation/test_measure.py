"""One way to measure: the metrics, with groups and steps where they are asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from etils import epath

from ste_jax.evaluation import metrics
from ste_jax.evaluation.judged import judging_stage, judging_work
from ste_jax.evaluation.measure import Measures, check_pairs, measure_judged, why_unasked
from ste_jax.evaluation.readers import read_pairs
from ste_jax.evaluation.traces import CHECKERS
from ste_jax.records import Pair
from ste_jax.run.layout import JudgedDir
from ste_jax.stages import judge_card
from ste_jax.stages.judge import Judge
from ste_jax.stages.roles import Role, to_sampling
from ste_jax.system import shipped
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.tasks import PAIRWISE, POINTWISE
from ste_jax.tasks.pairwise import shown
from tests.stages.scripted import Scripted

CARD = judge_card.default()
JUDGE = Judge(
    role=Role(name="judge", template=CARD.template, sampling=to_sampling(CARD.sampling), key=0),
    knobs=CARD.knobs,
    model="m",
    iteration=0,
)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return list(read_pairs("pairs", shipped.path_of("pico/same-task")))[:12]


def judged(root: Path, pairs: list[Pair], reply: object) -> JudgedDir:
    """Pairs that a judge was asked about, in a directory."""
    place = JudgedDir(epath.Path(root), 1)
    place.prompts.write(
        0, [each for pair in pairs for each in PAIRWISE.prompts(pair, JUDGE.role.template)]
    )
    stage = judging_stage(place, PAIRWISE, "identity", epath.Path(root) / "evaluation.json")  # type: ignore[arg-type]
    generator = Scripted(lambda request, sample: reply)  # type: ignore[arg-type, return-value]
    found = [rows for _, (rows,) in judging_work(JUDGE, 2)(stage.inputs(0), generator)]
    stage.outputs[0].write(0, [each for rows in found for each in rows])
    return place


def test_what_is_not_asked_for_is_not_measured(tmp_path: Path, pairs: list[Pair]) -> None:
    place = judged(tmp_path, pairs, " so [[A]]")
    prompts, judgments = list(place.prompts.rows()), list(place.judgments.rows())
    plain = measure_judged(PAIRWISE, place, iter(pairs), Measures(bootstrap=50))
    assert plain == metrics.measure(PAIRWISE, prompts, judgments, bootstrap=50)
    assert plain["accuracy"] == 0.5 and plain["share_a"] == 1.0 and plain["votes"] == 2


def test_groups_and_steps_stand_beside_the_same_figures(tmp_path: Path, pairs: list[Pair]) -> None:
    place = judged(tmp_path, pairs, " so [[A]]")
    plain = measure_judged(PAIRWISE, place, iter(pairs), Measures(bootstrap=50))
    column = min(json.loads(pairs[0].extra))
    asked = Measures(bootstrap=50, by=(column,), traces="pico")
    check_pairs(PAIRWISE, pairs, asked, "here")
    found = measure_judged(PAIRWISE, place, iter(pairs), asked)
    assert {key: found[key] for key in plain} == plain
    assert sum(of["n"] for of in found["by"][column].values()) == len(pairs)
    assert found["sound"] == found["step_formed"] == 0.0
    assert found["meanings"] == CHECKERS["pico"].meanings
    assert {f"step_{name}" for name in found["meanings"]} == {
        key for key in found if key.startswith("step_") and not key.endswith("_ci95")
    }


def test_steps_are_checked_for_the_task_that_the_checker_names(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Measures(traces="pico")
    with pytest.raises(RequestError, match=r"here: traces: pico .*task=pairwise, not of pointwise"):
        check_pairs(POINTWISE, pairs, asked, "here")
    # A task of its own may show two answers, too, in orders that this checker does not know.
    alike = dataclasses.replace(PAIRWISE, name="alike")
    with pytest.raises(RequestError, match="task=pairwise, not of alike"):
        check_pairs(alike, pairs, asked, "here")
    other = dataclasses.replace(CHECKERS["pico"], task=POINTWISE.name)
    monkeypatch.setitem(CHECKERS, "pico", other)
    check_pairs(POINTWISE, pairs, asked, "here")
    with pytest.raises(RequestError, match="task=pointwise, not of pairwise"):
        check_pairs(PAIRWISE, pairs, asked, "here")


def test_an_order_that_is_not_known_shows_nothing(pairs: list[Pair]) -> None:
    assert shown(pairs[0], "ba") == (pairs[0].rejected, pairs[0].chosen)
    with pytest.raises(WorkError, match=f"pair {pairs[0].id} is shown in the order 'better first'"):
        shown(pairs[0], "better first")


def test_a_judge_that_could_be_asked_nothing_says_why(tmp_path: Path, pairs: list[Pair]) -> None:
    nothing = judged(tmp_path / "nothing", pairs, ("no room", "too_long"))
    assert why_unasked(nothing) == "no room"
    assert why_unasked(judged(tmp_path / "all", pairs, " [[A]]")) == ""
    *others, last = nothing.judgments.rows()
    nothing.judgments.write(0, [*others, dataclasses.replace(last, failure=None, verdict="A")])
    assert why_unasked(nothing) == ""
