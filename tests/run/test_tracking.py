"""A training can be watched from outside, and a resumed one draws no line twice."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from etils import epath

from ste_jax.config.schema import TrackKnobs
from ste_jax.finetuning.meters import measured
from ste_jax.run.tracking import RECIPE, Tracker, check_tracking
from ste_jax.system.errors import RequestError
from ste_jax.system.hardware import PEAK_FLOPS
from tests.full_disk import files_no_larger_than


def tracker(root: Path, **knobs: Any) -> Tracker:
    return Tracker(
        TrackKnobs(**knobs), epath.Path(root), "1-sft", run="run", attempt="a1", config={"seed": 0}
    )


def event(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "tokens": 100, "note": "no number"}


def scalars(root: Path, tag: str, name: str = "1-sft") -> list[tuple[int, float]]:
    """What TensorBoard would show."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(root / "tensorboard" / name))
    found.Reload()
    return [(one.step, one.value) for one in found.Scalars(tag)]


def test_tensorboard_shows_steps_and_validations_once(tmp_path: Path) -> None:
    with tracker(tmp_path) as first:
        for step in (1, 2, 3):
            first.step(event(step, step / 2))
    # resumed after step 1
    with tracker(tmp_path) as second:
        for step in (2, 3):
            second.step(event(step, step / 4))
        second.validation(3, {"accuracy": 0.75, "n_prompts": 8, "parsed": None})
    assert scalars(tmp_path, "train/loss") == [(1, 0.5), (2, 0.5), (3, 0.75)]
    assert scalars(tmp_path, "validation/accuracy") == [(3, 0.75)]


def test_a_validation_that_is_taken_again_voids_no_step(tmp_path: Path) -> None:
    with tracker(tmp_path) as first:
        first.step(event(3, 0.5))
    with tracker(tmp_path) as second:
        second.validation(3, {"accuracy": 0.75})
    assert scalars(tmp_path, "train/loss") == [(3, 0.5)]
    assert scalars(tmp_path, "validation/accuracy") == [(3, 0.75)]


CURVE = {0: {"accuracy/held-out": 0.5}, 1: {"accuracy/held-out": 0.75}}


def recipe(root: Path, **knobs: Any) -> Tracker:
    return Tracker(
        TrackKnobs(**knobs), epath.Path(root), RECIPE, run="run", attempt="a1", config={"seed": 0}
    )


def test_the_curve_of_the_iterations_is_in_place_of_the_one_before(tmp_path: Path) -> None:
    with recipe(tmp_path) as first:
        assert not first.recipe_written
        first.recipe({0: {"accuracy/held-out": 0.25}, 1: {"accuracy/held-out": 0.3}}, 1, [])
    with recipe(tmp_path) as second:
        assert second.recipe_written
        second.recipe(CURVE, 1, ["held-out"])
    assert scalars(tmp_path, "accuracy/held-out", RECIPE) == [(0, 0.5), (1, 0.75)]


def test_the_accuracy_has_a_chart_with_its_interval(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    layout = pytest.importorskip("tensorboard.plugins.custom_scalar.layout_pb2")
    with recipe(tmp_path) as one:
        one.recipe(CURVE, 1, ["held-out"])
    found = events.EventAccumulator(str(tmp_path / "tensorboard" / RECIPE))
    found.Reload()
    (shown,) = found.Tensors("custom_scalars__config__")
    charts = layout.Layout.FromString(shown.tensor_proto.string_val[0]).category[0].chart
    (series,) = charts[0].margin.series
    ends = ["accuracy/held-out", "accuracy/held-out_low", "accuracy/held-out_high"]
    assert [series.value, series.lower, series.upper] == ends


def test_weights_and_biases_gets_the_iteration_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[Any] = []
    run = SimpleNamespace(
        log=lambda numbers, step: logged.append((step, numbers)), finish=lambda: None
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **words: run))
    with recipe(tmp_path, tensorboard=False, wandb="judges") as one:
        assert one.recipe_written
        one.recipe(CURVE, 1, ["held-out"])
    assert logged == [(1, {"accuracy/held-out": 0.75})]


def test_what_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file in the way")
    with (
        pytest.warns(UserWarning, match=r"goes on without TensorBoard's files .*metrics\.jsonl"),
        tracker(tmp_path) as one,
    ):
        one.step(event(1, 1.0))
        one.step(event(2, 1.0))


def test_a_full_disk_ends_no_training(tmp_path: Path) -> None:
    with (
        files_no_larger_than(2000),
        pytest.warns(UserWarning, match="goes on without TensorBoard's files .*File too large"),
        tracker(tmp_path) as one,
    ):
        for step in range(1, 301):
            one.step(event(step, 1.0))


def test_nothing_is_written_where_nothing_is_asked_for(tmp_path: Path) -> None:
    with tracker(tmp_path, tensorboard=False) as one:
        one.step(event(1, 1.0))
        one.validation(1, {"accuracy": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases_gets_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    begun: dict[str, Any] = {}
    run = SimpleNamespace(
        log=lambda numbers, step: logged.append((step, numbers)),
        finish=lambda: logged.append("finished"),
    )

    def init(**words: Any) -> Any:
        begun.update(words)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with tracker(tmp_path, tensorboard=False, wandb="judges") as one:
        one.step(event(1, 2.0))
        one.validation(1, {"accuracy": 0.5})
    assert (begun["project"], begun["id"], begun["resume"]) == ("judges", "run-1-sft-a1", "allow")
    assert logged == [
        (1, {"loss": 2.0, "tokens": 100.0}),
        (1, {"validation/accuracy": 0.5}),
        "finished",
    ]


def test_a_project_without_the_package_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracking(TrackKnobs())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"track\.wandb=judges .* pip install wandb"):
        check_tracking(TrackKnobs(wandb="judges"))


def test_a_step_is_told_by_what_its_devices_tell() -> None:
    step = {"tokens": 400, "flops": 2 * 10**12}
    silent = SimpleNamespace(device_kind="cpu", process_index=0, memory_stats=lambda: None)
    assert measured(step, 2.0, [silent]) == {"seconds": 2.0, "tokens_per_second": 200.0}  # type: ignore[list-item]
    chips = [
        SimpleNamespace(
            device_kind="TPU v5 lite",
            process_index=process,
            memory_stats=lambda used=used: {"bytes_in_use": used, "peak_bytes_in_use": 3 * used},
        )
        for process, used in ((0, 5), (0, 7), (1, 9))
    ]
    found = measured(step, 2.0, chips)  # type: ignore[arg-type]
    assert (found["hbm_bytes"], found["hbm_peak_bytes"]) == (7, 21)
    assert found["mfu"] == pytest.approx(2e12 / (2 * 3 * PEAK_FLOPS["TPU v5 lite"]))
