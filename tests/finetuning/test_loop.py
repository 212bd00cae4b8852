"""A fine-tuning can be stopped anywhere, and comes to the same bits."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from ste_jax import files
from ste_jax.errors import Preempted, WorkError
from ste_jax.finetuning import loop, packing
from ste_jax.finetuning.loop import FinetuneResult
from ste_jax.finetuning.packing import Example
from ste_jax.finetuning.state import StateStore
from tests.finetuning.small import EXAMPLES, KNOBS, Trained, example

STEPS = 10
"""Of the fine-tuning in `small`: states after 3, 4, 6, 8, 9 and 10, validations after 4, 8 and
10."""


@functools.cache
def undisturbed() -> tuple[FinetuneResult, Trained]:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        trained = Trained(epath.Path(directory))
        return trained.run(), trained


def assert_undisturbed(result: FinetuneResult, trained: Trained) -> None:
    """Everything is bit for bit what it is when nothing happens."""
    want, wanted = undisturbed()
    assert result == want
    assert trained.kept is not None
    assert wanted.kept is not None
    assert trained.kept[0] == wanted.kept[0]
    for path, value in wanted.kept[1].items():
        assert np.array_equal(trained.kept[1][path], value), path
    # Steps that were taken again were logged alike.
    by_step = {event["step"]: without_seconds(event) for event in trained.logged}
    assert list(by_step.values()) == want.steps
    assert all(by_step[e["step"]] == without_seconds(e) for e in trained.logged)
    home = next((trained.root / "state").iterdir())
    assert [path.name for path in home.iterdir()] == ["result.json"]


def without_seconds(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "seconds"}


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    return Trained(epath.Path(tmp_path))


def test_an_undisturbed_run() -> None:
    result, trained = undisturbed()
    assert [event["step"] for event in result.steps] == list(range(1, STEPS + 1))
    assert result.steps[-1]["loss"] < result.steps[0]["loss"]
    assert sum(event["tokens"] for event in result.steps) == 2 * sum(e.length for e in EXAMPLES)
    assert [v["step"] for v in result.validations] == [4, 8, 10] == trained.measured
    assert (result.best_step, result.best_accuracy) == (10, 0.1)
    assert result.dropped == result.unweighted == []
    assert all(event["seconds"] > 0 for event in trained.logged)
    assert_undisturbed(result, trained)


def test_a_finished_one_is_not_trained_again(trained: Trained) -> None:
    first = trained.run()
    logged, measured = len(trained.logged), list(trained.measured)
    assert trained.run() == first
    assert (len(trained.logged), trained.measured) == (logged, measured)


@pytest.mark.parametrize("after", [0, 3, 5, 9])
def test_asked_to_stop_it_saves_and_goes_on(after: int, trained: Trained) -> None:
    polls = iter([False] * after + [True])
    trained.stop = lambda: next(polls)
    with pytest.raises(Preempted, match=f"step {after + 1} of {STEPS}"):
        trained.run()
    assert len(trained.logged) == after + 1
    trained.stop = lambda: False
    result = trained.run()
    assert_undisturbed(result, trained)
    assert len(trained.logged) == STEPS  # no step was taken twice
    assert trained.measured == [4, 8, 10]


class Killed(BaseException):
    """Ends the process, in a test that does not want to start another one."""


def kill_points() -> dict[str, Callable[[pytest.MonkeyPatch, Trained], None]]:
    """Places to be killed at, by name."""

    def before(owner: Any, name: str, number: int) -> Callable[..., None]:
        def install(patch: pytest.MonkeyPatch, trained: Trained) -> None:
            target, calls = owner or trained, [0]
            original = getattr(target, name)

            def dying(*args: Any, **kwargs: Any) -> Any:
                calls[0] += 1
                if calls[0] == number:
                    raise Killed(name)
                return original(*args, **kwargs)

            patch.setattr(target, name, dying)

        return install

    def after(owner: Any, name: str, number: int) -> Callable[..., None]:
        def install(patch: pytest.MonkeyPatch, trained: Trained) -> None:
            target, calls = owner or trained, [0]
            original = getattr(target, name)

            def dying(*args: Any, **kwargs: Any) -> Any:
                out = original(*args, **kwargs)
                calls[0] += 1
                if calls[0] == number:
                    raise Killed(name)
                return out

            patch.setattr(target, name, dying)

        return install

    points = {}
    for number in (1, 2, 3):
        points[f"in validation {number}"] = before(None, "validate", number)
        points[f"after validation {number}"] = after(None, "validate", number)
        points[f"before model {number} is kept"] = before(None, "save_model", number)
        points[f"after model {number} is kept"] = after(None, "save_model", number)
    for number in range(1, 7):  # two ledger entries per validation
        points[f"before ledger entry {number}"] = before(files, "write_json", number)
    points["before the result"] = before(files, "write_json", 7)
    points["after the result"] = after(files, "write_json", 7)
    points["after the states are removed"] = after(loop, "_tidy", 1)
    return points


@pytest.mark.parametrize("point", kill_points())
def test_killed_at_every_seam_it_comes_to_the_same(
    point: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: dict[int, float] = {}

    def once(step: int) -> float:
        """A validation that never gives the same twice: what is on record must stand."""
        assert step not in measured or not recorded(trained, step), f"{step} measured again"
        measured[step] = step / 100
        return step / 100

    trained.accuracy = once
    with monkeypatch.context() as patch:
        kill_points()[point](patch, trained)
        with pytest.raises(Killed):
            trained.run()
    assert_undisturbed(trained.run(), trained)


def recorded(trained: Trained, step: int) -> bool:
    ledgers = list((trained.root / "state").glob("*/ledger.json"))
    return any(
        step in [v["step"] for v in json.loads(path.read_text())["validations"]] for path in ledgers
    )


KILLED = """
import os, signal, sys, threading, time
import tests.conftest
from etils import epath
from ste_jax.finetuning import loop
from tests.finetuning.small import Trained

place, root = sys.argv[1], epath.Path(sys.argv[2])
trained = Trained(root)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if place == "step":
    make = loop.make_train_step
    def deadly(*args, **kwargs):
        step, calls = make(*args, **kwargs), [0]
        def dying(state, batch):
            calls[0] += 1
            out = step(state, batch)
            if calls[0] == 6:
                kill()  # handed to the device, not waited for
            return out
        return dying
    loop.make_train_step = deadly
else:
    def watch():
        while True:
            for path in (root / "state").glob("*/*orbax-checkpoint-tmp*"):
                if path.name.startswith("6."):
                    kill()
    threading.Thread(target=watch, daemon=True).start()
trained.run()
"""


@pytest.mark.parametrize("place", ["step", "save"])
def test_a_real_kill_inside_a_step_or_a_save(place: str, trained: Trained) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, place, os.fspath(trained.root)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    home = next((trained.root / "state").iterdir())
    names = {path.name for path in home.iterdir()}
    assert "4" in names and "6" not in names
    assert any("tmp" in name for name in names) == (place == "save")

    # The process that was killed had kept its best model somewhere; here it is made again.
    result = trained.run()
    want, wanted = undisturbed()
    assert result == want
    assert trained.measured == [8, 10]
    assert [e["step"] for e in trained.logged] == list(range(5, 11))
    assert trained.kept is not None and wanted.kept is not None
    for path, value in wanted.kept[1].items():
        assert np.array_equal(trained.kept[1][path], value), path


def stopped_after_six(trained: Trained) -> epath.Path:
    """States after 4 and 6 are there; where they lie."""
    polls = iter([False] * 5 + [True])
    trained.stop = lambda: next(polls)
    with pytest.raises(Preempted):
        trained.run()
    trained.stop = lambda: False
    home = next((trained.root / "state").iterdir())
    assert sorted(path.name for path in home.iterdir()) == ["4", "6", "ledger.json"]
    return home


def largest(directory: epath.Path) -> Path:
    found = [path for path in Path(directory).rglob("*") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_size)


def flip_a_bit(state: epath.Path) -> None:
    file = largest(state / "arrays")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_short(state: epath.Path) -> None:
    file = largest(state / "arrays")
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_file(state: epath.Path) -> None:
    largest(state / "arrays").unlink()


def break_the_curve(state: epath.Path) -> None:
    (state / "curve" / "metadata").write_text('{"curve": [')


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, lose_a_file, break_the_curve])
def test_a_damaged_state_is_passed_over(
    damage: Callable[[epath.Path], None], trained: Trained
) -> None:
    home = stopped_after_six(trained)
    damage(home / "6")
    with pytest.warns(UserWarning, match=r"/6 is damaged and is passed over"):
        result = trained.run()
    assert_undisturbed(result, trained)
    assert [e["step"] for e in trained.logged] == [*range(1, 7), *range(5, 11)]


def test_with_every_state_damaged_it_begins_anew(trained: Trained) -> None:
    home = stopped_after_six(trained)
    flip_a_bit(home / "4")
    flip_a_bit(home / "6")
    with pytest.warns(UserWarning, match="damaged"):
        result = trained.run()
    assert_undisturbed(result, trained)
    # The validation after step 4 is on record; it is not measured again.
    assert trained.measured == [4, 8, 10]


def test_other_training_does_not_take_the_state(trained: Trained) -> None:
    stopped_after_six(trained)
    other = Trained(trained.root, learning_rate=5e-3)
    result = other.run()
    assert [e["step"] for e in other.logged] == list(range(1, STEPS + 1))
    assert result.steps != undisturbed()[0].steps
    assert len(list((trained.root / "state").iterdir())) == 1


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ((0.6, 0.5, 0.4), [4]),
        ((0.5, 0.5, 0.5), [4, 8, 10]),
        ((0.5, 0.6, 0.6), [4, 8, 10]),
        ((None, None, None), [4, 8, 10]),
        ((0.0, None, None), [4]),
    ],
)
def test_the_best_model_is_kept_and_of_equals_the_latest(
    accuracies: tuple[float | None, ...], kept: list[int], trained: Trained
) -> None:
    trained.accuracy = lambda step: accuracies[(4, 8, 10).index(step)]
    saved = []
    trained.save_model = lambda model, step, metrics: saved.append(step)  # type: ignore[method-assign]
    result = trained.run()
    assert saved == kept
    assert result.best_step == kept[-1]
    assert result.best_accuracy == accuracies[(4, 8, 10).index(kept[-1])]


def test_preempted_inside_a_validation_no_step_is_lost(trained: Trained) -> None:
    asked = [True]

    def accuracy(step: int) -> float:
        if step == 8 and asked.pop():
            raise Preempted("asked to stop")
        return step / 100

    trained.accuracy = accuracy
    with pytest.raises(Preempted):
        trained.run()
    trained.accuracy = lambda step: step / 100
    assert_undisturbed(trained.run(), trained)
    assert len(trained.logged) == STEPS


def test_a_loss_that_is_not_finite_stops_it(trained: Trained) -> None:
    trained = Trained(trained.root, learning_rate=1e38, clip_norm=0.0)
    with pytest.raises(WorkError) as raised:
        trained.run()
    step = len(trained.logged) + 1
    assert 1 < step <= 3  # before the first save
    message = str(raised.value)
    assert f"not finite at step {step} " in message
    assert "the last good training state is the start" in message
    ids = packing.plan(EXAMPLES, trained.knobs, 3).ids(step - 1, EXAMPLES)
    assert f"examples {', '.join(ids)};" in message


def test_a_loss_that_is_not_finite_names_the_last_good_state(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.make_train_step

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        step = real(*args, **kwargs)

        def run(state: Any, batch: Any) -> Any:
            if int(state.step) == 4:
                batch = {**batch, "weights": batch["weights"] * np.nan}
            return step(state, batch)

        return run

    monkeypatch.setattr(loop, "make_train_step", poisoned)
    with pytest.raises(WorkError, match=r"at step 5 .* state is /.*/4;"):
        trained.run()


def test_nothing_to_train_on(trained: Trained) -> None:
    trained.examples = []
    with pytest.raises(WorkError, match="no example was given"):
        trained.run()
    trained.examples = [
        Example(id="long", prompt_ids=[1] * 30, completion_ids=[2] * 3),
        Example(id="masked", prompt_ids=[1], completion_ids=[2], weights=[0.0]),
    ]
    with pytest.raises(
        WorkError,
        match=r"of 2 examples 1 are longer .*=32 \(the longest has 33 tokens\) and 1 have",
    ):
        trained.run()


def test_dropped_examples_are_told(trained: Trained) -> None:
    trained.examples = [
        *EXAMPLES,
        Example(id="long", prompt_ids=[1] * 30, completion_ids=[2] * 3),
        Example(id="masked", prompt_ids=[1], completion_ids=[2], weights=[0.0]),
    ]
    result = trained.run()
    assert (result.dropped, result.unweighted) == (["long"], ["masked"])
    assert result.steps == undisturbed()[0].steps  # and change nothing else


def test_the_order_of_the_examples_does_not_matter(trained: Trained) -> None:
    trained.examples = EXAMPLES[::-1]
    assert_undisturbed(trained.run(), trained)


def test_a_state_that_cannot_be_written_ends_it(
    trained: Trained, full_disk: Callable[[int], Any]
) -> None:
    # From the second save on; the first is there.
    save = StateStore.save
    with pytest.MonkeyPatch.context() as patch, full_disk(2000) as limit:

        def from_the_second_on(self: StateStore, step: int, *rest: Any) -> None:
            if step > 3:
                self.wait()
                limit()
            save(self, step, *rest)

        patch.setattr(StateStore, "save", from_the_second_on)
        with pytest.raises(WorkError, match=r"could not save the training state in .*: File too"):
            trained.run()
    home = next((trained.root / "state").iterdir())
    assert [path.name for path in home.iterdir()] == ["3"]
    assert_undisturbed(trained.run(), trained)


def test_knobs_of_the_small_fine_tuning() -> None:
    plan = packing.plan(EXAMPLES, KNOBS, 3)
    assert len(plan.steps) == STEPS
    assert len(plan.steps[-1]) < KNOBS.batch_rows  # the last batch is not full
    assert example(3).weights is not None
