"""Are the figures of a dry run those that this run has measured, or else bounds that hold?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from etils import epath

from ste_jax.commands.proposal import PACES, hours_of, seconds_of
from ste_jax.config.load import load_config
from ste_jax.config.schema import Config, PairKnobs
from ste_jax.pipeline.forecast import Figures, as_lines, device_of, estimate_of, forecast
from ste_jax.run.changes import Planned
from ste_jax.run.layout import RunDir
from ste_jax.run.metrics_log import read_metrics
from ste_jax.run.plan import ALL, Plan
from ste_jax.system.progress_lines import duration
from tests import tiny
from tests.golden import archive

Run = tuple[Config, RunDir]


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    root = archive.unpack("plain", tmp_path) / "run"
    return load_config(str(root / "config.yaml")), RunDir(epath.Path(root))


def planned(run: RunDir, *steps: Planned) -> Plan:
    return Plan(str(run.root), steps)


def test_of_a_finished_run_there_are_none(finished: Run) -> None:
    config, run = finished
    found = forecast(config, run, planned(run, Planned(title="label", fate="done")))
    assert found == [] and as_lines(found) == []


def test_what_was_done_in_this_run_gives_tokens_and_time(finished: Run) -> None:
    config, run = finished
    again = Planned(title="annotate 1", fate="again", what="..", todo=26)
    (found,) = forecast(config, run, planned(run, again))
    works = [e for e in read_metrics(run.root) if e.get("stage") == "annotate"]
    rows = sum(each["rows"] for each in works)
    tokens = sum(each["prompt_tokens"] + each["new_tokens"] for each in works)
    seconds = sum(each["seconds"] for each in works)
    assert (found.step, found.number, found.bound) == ("annotate 1", 26, False)
    assert found.tokens == round(26 * tokens / rows)
    assert found.seconds == pytest.approx(26 * seconds / rows)
    (halved,) = forecast(config, run, planned(run, again), processes=2)
    assert halved.seconds == pytest.approx(found.seconds / 2)


def test_where_nothing_is_measured_there_are_bounds_that_the_run_keeps(finished: Run) -> None:
    """What a finished run did is within what was foretold before it began."""
    config, run = finished
    done = read_metrics(run.root)
    first = Planned(title=ALL, fate="first", what="2 iterations, for the first time")
    new = RunDir(run.root.parent / "new")
    found = {each.step: each for each in forecast(config, new, planned(new, first))}
    assert list(found)[:4] == ["label", "pair", "evaluate 0", "annotate 1"]
    assert all(each.seconds is None for each in found.values())
    assert found["label"].tokens is None  # how many instructions there are is not known
    for stage in ("annotate", "evaluate"):
        for index in (1, 2):
            bound = found[f"{stage} {index}"]
            events = [e for e in done if e.get("stage") == stage and e["iteration"] == index]
            assert bound.bound and sum(e["rows"] for e in events) <= bound.number
            assert sum(e["prompt_tokens"] + e["new_tokens"] for e in events) <= bound.tokens
    for index in (1, 2):
        steps = json.loads(run.iteration(index).loss_curve.read_text())["steps"]
        assert len(steps) <= found[f"sft {index}"].number
        assert sum(each["tokens"] for each in steps) <= found[f"sft {index}"].tokens


def test_before_a_run_begins_its_time_is_the_estimate_of_ste_init(tmp_path: Path) -> None:
    config, run = load_config("llama-3.1-8b-v5e-8"), RunDir(epath.Path(tmp_path / "new"))
    assert device_of(config, here=False) == "v5e-8"
    pace = PACES["v5e-8"]
    first = Planned(title=ALL, fate="first", what="3 iterations, for the first time")
    found = forecast(config, run, planned(run, first), 1, seconds_of(config, 8e9, pace))
    assert all(each.estimated and each.bound and each.tokens for each in found)
    total = sum(each.seconds for each in found)
    assert total == pytest.approx(3600 * hours_of(config, 8e9, pace))
    *_, last, note = as_lines(found)
    assert "  at most " in last and f"about {duration(total)}" in last and "estimated" in note


def test_what_is_measured_is_not_estimated(finished: Run) -> None:
    config, run = finished
    again = Planned(title="annotate 1", fate="again", what="..", todo=26)
    guess = {"annotate": 1e6, "label": 1e6}
    (found,) = forecast(config, run, planned(run, again), 1, guess)
    assert found.seconds < 1000 and not found.estimated


def test_the_device_of_a_config_of_ones_own_is_the_one_here(tmp_path: Path) -> None:
    own = dataclasses.replace(load_config("llama-3.1-8b-v5e-8"), name="mine", model="absent.gguf")
    assert device_of(own, here=True) == "cpu" and device_of(own, here=False) == ""
    run = RunDir(epath.Path(tmp_path / "new"))
    assert estimate_of(own, run, "") == {} == estimate_of(own, run, "cpu")  # no such model
    model = tiny.write_model(tmp_path / "model")
    own = dataclasses.replace(own, model=str(model), pair=PairKnobs(generator="other"))
    assert set(estimate_of(own, run, "cpu")) == {"label", "annotate", "sft", "evaluate"}


def test_the_table_says_what_is_a_bound_and_what_is_not_known() -> None:
    lines = as_lines(
        [
            Figures("label", None, None, None, unit="instructions"),
            Figures("annotate 1", 1, 3000, None, bound=True),
            Figures("sft 1", 155, 377974, 49.0, unit="steps"),
        ]
    )
    assert [" ".join(line.split()) for line in lines] == [
        "",
        "step work tokens time",
        "label ? ? not known yet",
        "annotate 1 at most 1 prompt at most 3,000 not known yet",
        "sft 1 155 steps 377,974 49 s",
        "all of it 380,974 and more 49 s and more",
    ]
