"""Each phase of fine-tuning is one object: what it refuses, what it holds, and one more of them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from etils import epath

import ste_jax
from ste_jax import cli
from ste_jax.checkpoints.card import read_card
from ste_jax.config import from_plain
from ste_jax.config.schema import Config, DpoKnobs, FinetuneKnobs
from ste_jax.finetuning.batch_source import BatchSource, PlannedRows
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.optimizer import learning_rate
from ste_jax.model_io.open_model import Opened
from ste_jax.parallel.processes import Processes
from ste_jax.pipeline import recipe
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.phases import PHASES, check_batches, check_phases, phase_reports, phases_of
from ste_jax.pipeline.phases.phase import Phase, PhaseDirs
from ste_jax.pipeline.units import make_examples
from ste_jax.records import TrainingExample
from ste_jax.reporting.phases import PhaseReport
from ste_jax.reporting.tables import finetuning_table, stage_table
from ste_jax.run.layout import IterationDir, Table
from ste_jax.system.errors import RequestError
from tests import tiny


def config(**groups: Any) -> Config:
    return from_plain.build(Config, {"model": "m", **groups}, "test")


BOTH = {"stages": ["sft", "dpo"]}


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        (
            {"finetune": {"stages": ["ppo"]}},
            "finetune.stages: there is no phase 'ppo'; there are sft, dpo",
        ),
        ({"finetune": {"stages": ["dpo"]}}, "put sft before dpo in finetune.stages"),
        ({"finetune": BOTH, "annotate": {"samples": 1}}, "raise annotate.samples"),
        (
            {"finetune": {**BOTH, "dpo": {"judgments": "annotate"}}},
            "set annotate.policy=all, or finetune.dpo.judgments=sft",
        ),
        (
            {"finetune": {**BOTH, "dpo": {"more_samples": 4, "more_temperature": 0.7}}},
            "finetune.dpo.more_temperature=0.7 is not above the usual",
        ),
        (
            {"finetune": {**BOTH, "dpo": {"negatives": []}}},
            "finetune.dpo.negatives must name at least one kind",
        ),
        (
            {"finetune": {**BOTH, "dpo": {"accumulate": 3}}},
            "finetune.dpo.accumulate must divide",
        ),
        (
            {"finetune": {**BOTH, "dpo": {"schedule_steps": 5, "warmup_steps": 5}}},
            "finetune.dpo.schedule_steps=5 must be 0",
        ),
        (
            {"finetune": {"batch_rows": 3}},
            "finetune.batch_rows / finetune.accumulate = 3 rows cannot be divided",
        ),
        (
            {"finetune": {**BOTH, "dpo": {"batch_rows": 3, "accumulate": 1}}},
            "finetune.dpo.batch_rows / finetune.dpo.accumulate = 3 rows cannot be divided",
        ),
    ],
)
def test_what_contradicts_a_phase_is_refused(groups: dict[str, Any], told: str) -> None:
    there = config(**groups)
    with pytest.raises(RequestError, match=re.escape(told)):
        check_phases(there)
        check_batches(there)


@pytest.mark.parametrize("knobs", [{"batch_rows": 6}, {"negatives": []}])
def test_nobody_minds_the_knobs_of_a_phase_that_the_run_does_not_have(
    knobs: dict[str, Any],
) -> None:
    there = config(finetune={"dpo": knobs})
    check_phases(there)
    check_batches(there)


def test_a_phase_is_refused_before_processes_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the refusal would come only once all machines are up."""
    monkeypatch.setattr("ste_jax.parallel.processes.initialize", None)  # would fail with 1
    words = ["--coordinator", "localhost:1", "--processes", "2", "--process-id", "0"]
    refused = "finetune.stages=[sft, grpo]"
    assert cli.main(["run", "pico", refused, "--dir", str(tmp_path / "run"), *words]) == 2
    assert "there is no phase 'grpo'" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("model: m\nfinetune: {stages: [dpo]}\n")
    assert cli.main(["finetune", str(tmp_path / "run"), *words]) == 2
    assert "put sft before dpo" in capsys.readouterr().err
    with monkeypatch.context() as patch, pytest.raises(RequestError, match="no phase 'grpo'"):
        patch.setattr("ste_jax.pipeline.run_config.joined", None)
        ste_jax.run_config("pico", dir=tmp_path / "other", overrides={"finetune.stages": ["grpo"]})


def test_what_fits_is_let_through() -> None:
    check_phases(config(finetune=BOTH))
    dpo = {"judgments": "annotate"}
    alone = config(finetune={"stages": ["dpo"], "dpo": dpo}, annotate={"policy": "all"})
    check_phases(alone)
    assert [phase.name for phase in phases_of(alone)] == ["dpo"]


def test_every_knob_of_a_training_is_taken_from_the_config() -> None:
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(FinetuneKnobs):
        value = getattr(FinetuneKnobs(), field.name)
        if isinstance(value, (int, float)):
            changed[field.name] = value + 1
    knobs = FinetuneKnobs(**changed)
    found = TrainingKnobs.of(knobs)
    own = {field.name for field in dataclasses.fields(TrainingKnobs)} - {"group"}
    every = {field.name for field in dataclasses.fields(FinetuneKnobs)}
    assert every - own == {"stages", "handover", "dpo", "mesh"}
    assert own <= every
    assert {name: getattr(found, name) for name in own} == {
        name: getattr(knobs, name) for name in own
    }
    assert set(changed) <= own


def test_dpo_trains_by_its_own_knobs_and_else_by_the_shared_ones() -> None:
    there = config(finetune={**BOTH, "beta1": 0.8, "warmup_steps": 7, "sequence_length": 64})
    found = PHASES["dpo"].training_knobs(there)
    shared, own = TrainingKnobs.of(there.finetune), DpoKnobs()
    names = {field.name for field in dataclasses.fields(TrainingKnobs)}
    its = {field.name for field in dataclasses.fields(own)} & names
    for name in names - its - {"group"}:
        assert getattr(found, name) == getattr(shared, name), name
    for name in its - {"sequence_length"}:
        assert getattr(found, name) == getattr(own, name), name
    assert found.sequence_length == 64
    longer = {**BOTH, "dpo": {"sequence_length": 99}}
    assert PHASES["dpo"].training_knobs(config(finetune=longer)).sequence_length == 99


def changed(field: dataclasses.Field[Any]) -> Any:
    """Another value of a knob."""
    value = getattr(DpoKnobs(), field.name)
    if isinstance(value, tuple):
        return value[:1]
    return {"sft": "annotate"}[value] if isinstance(value, str) else value + 1


@pytest.mark.parametrize("field", dataclasses.fields(DpoKnobs), ids=lambda field: field.name)
def test_each_knob_of_dpo_makes_another_judge_or_other_rows(
    field: dataclasses.Field[Any],
) -> None:
    """A knob that were held nowhere would leave a judge as finished that it changes."""
    phase, usual = PHASES["dpo"], config(finetune=BOTH)
    finetune = dataclasses.replace(
        usual.finetune, dpo=dataclasses.replace(DpoKnobs(), **{field.name: changed(field)})
    )
    there = dataclasses.replace(usual, finetune=finetune)
    of_rows = {"judgments", "pairs_per_prompt", "negatives", "more_samples", "more_temperature"}
    differs = json.dumps(phase.identity(there)) != json.dumps(phase.identity(usual))
    assert differs == (field.name not in of_rows)
    assert (phase.named(there) != phase.named(usual)) == differs
    trained = phase.training_knobs(there)
    if hasattr(trained, field.name):  # also where both groups have the same default
        assert getattr(trained, field.name) == changed(field)


def test_the_rate_of_dpo_rises_over_its_own_number_of_steps() -> None:
    knobs = PHASES["dpo"].training_knobs(config(finetune={**BOTH, "warmup_steps": 100}))
    for total in (40, 9000):  # however many steps are taken
        rates = [float(learning_rate(knobs, total, step)) for step in (0, 1500, 3000, 5000)]
        assert rates == pytest.approx([5.5e-8, (5.5e-8 + 1.1e-6) / 2, 1.1e-6, 1.1e-6])


def test_only_its_own_file_and_its_knobs_know_dpo() -> None:
    root = Path(ste_jax.__file__).parent
    word = re.compile(r"""["']dpo["']|\.dpo\b(?! import)|\bdpo\b(?! import)|\bdpo_(?!loss)""")
    own = {*(root / "pipeline/phases").glob("dpo*.py"), *(root / "config/schema").glob("*.py")}
    found = {path for path in root.rglob("*.py") if word.search(path.read_text())}
    assert found - own == set()
    assert root / "pipeline/phases/dpo.py" in found


class PolishReport(PhaseReport):
    """One that names its steps and has a column of its own."""

    work = "polish"
    example_columns = ("polished",)

    def of_examples(self, iteration: IterationDir) -> dict[str, Any]:
        return {"polished": sum(1 for _ in iteration.training.rows())}


class Polish(Phase):
    """A second pass over the same judgments, by other knobs."""

    name = "polish"
    step = "finetune polish"
    report = PolishReport()

    def training_knobs(self, config: Config) -> TrainingKnobs:
        return dataclasses.replace(
            TrainingKnobs.of(config.finetune), learning_rate=1e-3, max_steps=1
        )

    def table(self, here: IterationDir) -> Table[TrainingExample]:
        return here.training

    def source(
        self,
        context: Context,
        dirs: PhaseDirs,
        data: str,
        opened: Opened,
        arguments: Mapping[str, Any],
    ) -> BatchSource:
        rows = list(self.table(dirs.here).rows())
        examples = make_examples(rows, opened.tokenizer, arguments)
        return PlannedRows(examples, self.training_knobs(context.config), context.config.seed)


def test_a_phase_more_is_one_object_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PHASES, "polish", Polish())
    values = tiny.config(
        tmp_path,
        iterations=1,
        select__train=200,
        select__heldout=30,
        finetune__stages=["sft", "polish"],
        finetune__mesh={"data": 1, "fsdp": 1, "tensor": -1},
    )
    there = from_plain.build(Config, values, "test")
    root = epath.Path(tmp_path / "run")
    run = recipe.run(there, root, Processes())
    here = run.iteration(1)
    cards = [read_card(place.checkpoint)["provenance"] for place in (here.phase("sft"), here)]
    assert [card["stage"] for card in cards] == ["sft", "polish"]
    assert cards[1]["parent"] == cards[0]["fingerprint"]
    curve = json.loads(here.loss_curve.read_text())
    assert len(curve["steps"]) == 1 and curve["stage"] == "polish"
    rows = finetuning_table(run, phase_reports())
    assert [row["stage"] for row in rows] == ["sft", "polish"]
    assert rows[0]["polished"] is None and rows[1]["polished"] == curve["examples"]
    assert {"train", "polish"} <= {row["stage"] for row in stage_table(run, phase_reports())}
    assert "polish" in run.report.read_text()
    before = Path(here.loss_curve).stat().st_mtime_ns
    recipe.run(there, root, Processes())
    assert Path(here.loss_curve).stat().st_mtime_ns == before
