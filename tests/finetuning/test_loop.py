"""A fine-tuning can be stopped anywhere, and comes to the same bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from ste_jax.finetuning import loop, packing
from ste_jax.finetuning.loop import FinetuneResult
from ste_jax.finetuning.packing import Example
from ste_jax.finetuning.training_state import StateStore
from ste_jax.system.errors import Preempted, WorkError
from tests.finetuning.small import EXAMPLES, KNOBS, Trained, example
from tests.finetuning.undisturbed import STEPS, Check
from tests.full_disk import files_no_larger_than

# That a state is passed over is never a matter of luck.
pytestmark = [
    pytest.mark.filterwarnings("error:the training state"),
    # what Orbax leaves behind where a read or a write fails
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LEDGER = ("ledger.json", "ledger.json.copy")


def test_an_undisturbed_run(undisturbed: tuple[FinetuneResult, Trained], check: Check) -> None:
    result, trained = undisturbed
    assert [event["step"] for event in result.steps] == list(range(1, STEPS + 1))
    assert result.steps[-1]["loss"] < result.steps[0]["loss"]
    assert sum(event["tokens"] for event in result.steps) == 2 * sum(e.length for e in EXAMPLES)
    assert [v["step"] for v in result.validations] == [4, 8, 10] == trained.measured
    assert (result.best_step, result.best_accuracy) == (10, 0.1)
    assert result.dropped == result.unweighted == []
    assert all(event["seconds"] > 0 for event in trained.logged)
    check(result, trained)


def test_a_finished_one_is_not_trained_again(trained: Trained) -> None:
    first = trained.run()
    logged, measured = len(trained.logged), list(trained.measured)
    assert trained.run() == first
    assert (len(trained.logged), trained.measured) == (logged, measured)


@pytest.mark.parametrize("after", [0, 3, 9])
def test_asked_to_stop_it_saves_and_goes_on(after: int, trained: Trained, check: Check) -> None:
    polls = iter([False] * after + [True])
    trained.stop = lambda: next(polls)
    with pytest.raises(Preempted, match=f"step {after + 1} of {STEPS}"):
        trained.run()
    assert len(trained.logged) == after + 1
    trained.stop = lambda: False
    result = trained.run()
    check(result, trained)
    assert len(trained.logged) == STEPS  # no step was taken twice
    assert trained.measured == [4, 8, 10]


def stopped_after_six(trained: Trained) -> epath.Path:
    """States after 4 and 6 are there; where they lie."""
    polls = iter([False] * 5 + [True])
    trained.stop = lambda: next(polls)
    with pytest.raises(Preempted):
        trained.run()
    trained.stop = lambda: False
    home = next((trained.root / "state").iterdir())
    assert sorted(path.name for path in home.iterdir()) == ["4", "6", *LEDGER]
    return home


def largest(directory: epath.Path) -> Path:
    found = [path for path in Path(directory).rglob("*") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_size)


def flip_a_bit(state: epath.Path) -> None:
    file = largest(state / "arrays")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(state: epath.Path) -> None:
    largest(state / "arrays").unlink()


def break_the_curve(state: epath.Path) -> None:
    (state / "curve" / "metadata").write_text('{"curve": [')


@pytest.mark.parametrize("damage", [flip_a_bit, lose_a_file, break_the_curve])
def test_a_damaged_state_is_passed_over(
    damage: Callable[[epath.Path], None], trained: Trained, check: Check
) -> None:
    home = stopped_after_six(trained)
    damage(home / "6")
    with pytest.warns(UserWarning, match=r"/6 is damaged and is passed over"):
        result = trained.run()
    check(result, trained)
    assert [e["step"] for e in trained.logged] == [*range(1, 7), *range(5, 11)]


def test_with_every_state_damaged_it_begins_anew(trained: Trained, check: Check) -> None:
    home = stopped_after_six(trained)
    flip_a_bit(home / "4")
    flip_a_bit(home / "6")
    with pytest.warns(UserWarning, match="damaged"):
        result = trained.run()
    check(result, trained)
    # The validation after step 4 is on record; it is not measured again.
    assert trained.measured == [4, 8, 10]


def test_other_training_does_not_take_the_state(trained: Trained, check: Check) -> None:
    stopped_after_six(trained)
    other = Trained(trained.root, validate_every=5)
    with pytest.warns(UserWarning, match="a training that had taken 6 steps is let go of"):
        result = other.run()
    assert [event["step"] for event in other.logged] == list(range(1, STEPS + 1))
    assert [validation["step"] for validation in result.validations] == [5, 10]
    assert len(list((trained.root / "state").iterdir())) == 1


def test_knobs_that_change_no_result_leave_its_state_alone(trained: Trained, check: Check) -> None:
    stopped_after_six(trained)
    trained.knobs = dataclasses.replace(trained.knobs, keep_states=5, rounding="nearest")
    result = trained.run()
    assert [event["step"] for event in trained.logged] == list(range(1, STEPS + 1))
    check(result, trained)


def test_preempted_inside_a_validation_no_step_is_lost(trained: Trained, check: Check) -> None:
    asked = [True]

    def accuracy(step: int) -> float:
        if step == 8 and asked.pop():
            raise Preempted("asked to stop")
        return step / 100

    trained.accuracy = accuracy
    with pytest.raises(Preempted):
        trained.run()
    trained.accuracy = lambda step: step / 100
    check(trained.run(), trained)
    assert len(trained.logged) == STEPS


@pytest.mark.parametrize(("step", "state"), [(1, "the start"), (5, "/.*/4")])
def test_a_loss_that_is_not_finite_stops_it(
    step: int, state: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.make_train_step

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        train = real(*args, **kwargs)

        def run(state: Any, batch: Any, fixed: Any) -> Any:
            if int(state.step) == step - 1:
                batch = {**batch, "weights": batch["weights"] * np.nan}
            return train(state, batch, fixed)

        return run

    monkeypatch.setattr(loop, "make_train_step", poisoned)
    with pytest.raises(WorkError, match=rf"not finite at step {step} .* state is {state};") as told:
        trained.run()
    assert len(trained.logged) == step - 1
    ids = packing.plan(EXAMPLES, KNOBS, 3).ids(step - 1, EXAMPLES)
    assert f"examples {', '.join(ids)};" in str(told.value)


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


def test_dropped_examples_are_told(
    trained: Trained, undisturbed: tuple[FinetuneResult, Trained]
) -> None:
    trained.examples = [
        *EXAMPLES,
        Example(id="long", prompt_ids=[1] * 30, completion_ids=[2] * 3),
        Example(id="masked", prompt_ids=[1], completion_ids=[2], weights=[0.0]),
    ]
    result = trained.run()
    assert (result.dropped, result.unweighted) == (["long"], ["masked"])
    assert result.steps == undisturbed[0].steps  # and change nothing else


def test_the_order_of_the_examples_does_not_matter(trained: Trained, check: Check) -> None:
    trained.examples = EXAMPLES[::-1]
    check(trained.run(), trained)


def test_a_state_that_cannot_be_written_ends_it(trained: Trained, check: Check) -> None:
    save = StateStore.save

    def save_or_fail(self: StateStore, step: int, *content: Any) -> None:
        if step == 3:
            return save(self, step, *content)
        self.wait()
        with files_no_larger_than(2000):
            save(self, step, *content)
            self.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StateStore, "save", save_or_fail)
        with pytest.raises(WorkError, match=r"could not save the training state in .*: File too"):
            trained.run()
    home = next((trained.root / "state").iterdir())
    assert [path.name for path in home.iterdir()] == ["3"]
    check(trained.run(), trained)


def test_knobs_of_the_small_fine_tuning() -> None:
    plan = packing.plan(EXAMPLES, KNOBS, 3)
    assert len(plan.steps) == STEPS
    assert len(plan.steps[-1]) < KNOBS.batch_rows  # the last batch is not full
    assert example(3).weights is not None


def test_with_the_state_on_disk_meanwhile_a_validation_gives_the_same(
    trained: Trained, check: Check
) -> None:
    trained.let_go = True
    check(trained.run(), trained)
    assert trained.measured == [4, 8, 10]


def test_an_older_state_read_back_takes_its_steps_again(trained: Trained, check: Check) -> None:
    trained.let_go = True
    measure = trained.accuracy

    def damage(step: int) -> float | None:
        if step == 8:
            home = next((trained.root / "state").iterdir())
            flip_a_bit(home / "8")
        return measure(step)

    trained.accuracy = damage
    with pytest.warns(UserWarning, match="training state .*8 is damaged"):
        result = trained.run()
    check(result, trained)
    taken = [event["step"] for event in trained.logged]
    assert taken == [1, 2, 3, 4, 5, 6, 7, 8, 7, 8, 9, 10]


def test_as_many_states_are_kept_as_the_knob_says(trained: Trained, check: Check) -> None:
    trained.knobs = dataclasses.replace(trained.knobs, keep_states=3)
    polls = iter([False] * 8 + [True])
    trained.stop = lambda: next(polls)
    with pytest.raises(Preempted):
        trained.run()
    home = next((trained.root / "state").iterdir())
    assert sorted(path.name for path in home.iterdir()) == ["6", "8", "9", *LEDGER]
    trained.stop = lambda: False
    check(trained.run(), trained)


def test_the_last_model_is_the_result_if_it_is_asked_for(trained: Trained) -> None:
    trained.knobs = dataclasses.replace(trained.knobs, select="last")
    trained.accuracy = lambda step: 1 - step / 100
    result = trained.run()
    assert (result.best_step, result.best_accuracy) == (10, 0.9)
    assert trained.kept is not None
    assert trained.kept[0] == 10


def test_what_is_too_long_is_cut_off_if_it_is_asked_for(trained: Trained) -> None:
    prompt = dataclasses.replace(EXAMPLES[0], id="prompt", prompt_ids=(1,) * 40)
    long = dataclasses.replace(EXAMPLES[1], id="long", completion_ids=(1,) * 40, weights=None)
    trained.knobs = dataclasses.replace(trained.knobs, too_long="truncate", max_steps=2)
    trained.examples = [*EXAMPLES[:4], prompt, long]
    result = trained.run()
    assert (result.dropped, result.truncated) == (["prompt"], ["long"])
    cut = long.cut(32)
    assert (cut.length, cut.prompt_ids) == (32, long.prompt_ids)


def test_what_it_begins_with_may_be_the_best(trained: Trained) -> None:
    trained.start = {"accuracy": 0.5}
    polls = iter([False] * 5 + [True])
    trained.stop = lambda: next(polls)
    with pytest.raises(Preempted):
        trained.run()
    trained.stop = lambda: False
    trained.start = {"accuracy": 0.0}  # what was measured first counts
    result = trained.run()
    assert [v["step"] for v in result.validations] == [0, 4, 8, 10]
    assert (result.best_step, result.best_accuracy) == (0, 0.5)
    assert trained.kept is None  # who began with it has it still
    assert trained.measured == [4, 8, 10]


def test_of_equals_what_was_trained_is_the_best(
    trained: Trained, undisturbed: tuple[FinetuneResult, Trained]
) -> None:
    trained.start = {"accuracy": 0.1}
    result = trained.run()
    assert (result.best_step, result.best_accuracy) == (10, 0.1)
    assert result.steps == undisturbed[0].steps
    assert trained.kept is not None
