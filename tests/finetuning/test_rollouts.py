"""Rows that are sampled from the weights in training: a `BatchSource` of another kind.

What is told well is made likelier, what is told badly less likely: REINFORCE with the mean of a
prompt's samples as its baseline (Williams 1992). Such a training can be stopped anywhere too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from ste_jax.decoding.generator import LocalGenerator
from ste_jax.finetuning import packing
from ste_jax.finetuning.batch_source import BatchSource, LeftOut, StepRows
from ste_jax.finetuning.loop import FinetuneResult
from ste_jax.finetuning.objectives import Sft
from ste_jax.finetuning.packing import Example
from ste_jax.generation import Message, Request, Sampling
from ste_jax.models.decoder import Decoder
from ste_jax.models.transfer import on_mesh
from ste_jax.system.errors import Preempted
from tests.decoding import small
from tests.finetuning.small import Trained
from tests.finetuning.test_killed import Killed

STEPS, SAMPLES, LENGTH = 8, 8, 32
PROMPTS = ("ab", "cde", "f")
WANTED = range(3, 29)
"""The small letters: a completion is the better, the more of its tokens are among them."""


class Words(small.Letters):
    """A tokenizer whose chat template takes arguments."""

    def prompt_ids(
        self, messages: Sequence[Any], continue_text: str = "", arguments: Any = None
    ) -> list[int]:
        return super().prompt_ids(messages, continue_text)


def chat(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


class Rollouts:
    """Samples of the weights in training, weighted by how much better they are than the others of
    their prompt."""

    objective = Sft()
    needs_model = True
    steps = STEPS
    examples = len(PROMPTS)
    left_out = LeftOut()

    def __init__(self) -> None:
        self.rewards: dict[int, float] = {}
        self.weights: list[float] = []

    def identity(self) -> Iterable[Any]:
        return [["rollouts", PROMPTS, SAMPLES]]

    def rows(self, step: int, model: Decoder | None) -> StepRows:
        assert model is not None
        mesh = small.one_device()
        generator = LocalGenerator(on_mesh(model, mesh, "float32"), Words(), small.KNOBS, mesh)
        for prompt in PROMPTS:
            generator.submit(
                Request(
                    id=f"{step}/{prompt}",
                    messages=chat(prompt),
                    sampling=Sampling(max_new_tokens=8, temperature=1.0),
                    samples=range(SAMPLES),
                    key=5,
                )
            )
        found = small.collect(generator.completions())
        examples, every = [], []
        for prompt in PROMPTS:
            drawn = [found[f"{step}/{prompt}", sample].token_ids for sample in range(SAMPLES)]
            rewards = [sum(id in WANTED for id in ids) / len(ids) for ids in drawn]
            every += rewards
            for sample, (ids, reward) in enumerate(zip(drawn, rewards, strict=True)):
                advantage = reward - sum(rewards) / SAMPLES
                self.weights.append(advantage)
                examples.append(
                    Example(
                        id=f"{step}/{prompt}/{sample}",
                        prompt_ids=Words().prompt_ids(chat(prompt)),
                        completion_ids=ids,
                        weights=[advantage] * len(ids),
                    )
                )
        self.rewards[step] = sum(every) / len(every)
        rows = packing.fill(
            packing.pack([each.length for each in examples], LENGTH),
            examples,
            count=16,
            sequence_length=LENGTH,
            targets_per_row=LENGTH,
        )
        return StepRows(rows, [each.id for each in examples])


class Learner(Trained):
    """A training on its own samples."""

    def __init__(self, root: epath.Path) -> None:
        super().__init__(
            root,
            learning_rate=3e-2,
            warmup_steps=0,
            batch_rows=16,
            weight_decay=0.0,
            save_every=2,
            validate_every=4,
        )
        self.rollouts = Rollouts()

    def source(self) -> BatchSource:
        return self.rollouts

    def run(self) -> FinetuneResult:
        # The arrays are taken over: a second run needs a model of its own.
        self.model = small.small_model.__wrapped__()
        return super().run()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneResult, Learner]:
    learner = Learner(epath.Path(tmp_path_factory.mktemp("rollouts")))
    return learner.run(), learner


def test_it_learns_what_is_rewarded(undisturbed: tuple[FinetuneResult, Learner]) -> None:
    result, learner = undisturbed
    rewards = [learner.rollouts.rewards[step] for step in range(STEPS)]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.1
    assert min(learner.rollouts.weights) < 0 < max(learner.rollouts.weights)
    assert [event["step"] for event in result.steps] == list(range(1, STEPS + 1))


def preempted(learner: Learner, patch: pytest.MonkeyPatch) -> type[BaseException]:
    polls = iter([False] * 4 + [True])
    patch.setattr(learner, "stop", lambda: next(polls))
    return Preempted


def killed(learner: Learner, patch: pytest.MonkeyPatch) -> type[BaseException]:
    real = learner.rollouts.rows

    def rows(step: int, model: Decoder | None) -> StepRows:
        if step == 5:
            raise Killed
        return real(step, model)

    patch.setattr(learner.rollouts, "rows", rows)
    return Killed


@pytest.mark.parametrize("way", [preempted, killed])
def test_stopped_on_its_way_it_comes_to_the_same(
    way: Callable[[Learner, pytest.MonkeyPatch], type[BaseException]],
    undisturbed: tuple[FinetuneResult, Learner],
    tmp_path: Path,
) -> None:
    learner = Learner(epath.Path(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        stopped = way(learner, patch)
        with pytest.raises(stopped):
            learner.run()
    learner.rollouts = Rollouts()
    result = learner.run()
    want, wanted = undisturbed
    assert min(learner.rollouts.rewards) > 0  # what was saved is not sampled again
    assert result == want
    assert learner.kept is not None and wanted.kept is not None
    for path, value in wanted.kept[1].items():
        assert np.array_equal(learner.kept[1][path], value), path


def test_other_rollouts_are_another_training(
    undisturbed: tuple[FinetuneResult, Learner], tmp_path: Path
) -> None:
    _, learner = undisturbed
    (home,) = (learner.root / "state").iterdir()
    other = Learner(epath.Path(tmp_path))
    other.rollouts.steps = 1
    other.rollouts.identity = lambda: [["rollouts", PROMPTS, SAMPLES + 1]]  # type: ignore[method-assign]
    other.knobs = dataclasses.replace(other.knobs, validate_every=1)
    other.run()
    (there,) = (other.root / "state").iterdir()
    assert there.name != home.name
