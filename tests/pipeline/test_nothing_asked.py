"""Where a judge has no room for a prompt it is in no figure; where it has none for any, there is no
figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from etils import epath

from ste_jax.config.schema import Config, JudgeKnobs
from ste_jax.generation import Completion, Message, Sampling
from ste_jax.parallel.processes import Processes
from ste_jax.pipeline import evaluate
from ste_jax.pipeline.validate import Validation
from ste_jax.records import Instruction, Prompt, instruction_id, make_pair
from ste_jax.run.layout import RunDir
from ste_jax.stages.judge import Judge, judge_all
from ste_jax.stages.roles import Role
from ste_jax.system import files
from ste_jax.system.errors import Preempted, WorkError
from ste_jax.tasks import PAIRWISE
from tests.stages.scripted import Scripted

JUDGE = Judge(
    role=Role(
        name="judge",
        template=PAIRWISE.load_template("judge"),
        sampling=Sampling(max_new_tokens=8),
        key=1,
    ),
    knobs=JudgeKnobs(),
    model="m",
    iteration=0,
)


def prompts_of(*questions: str) -> list[Prompt]:
    found: list[Prompt] = []
    for text in questions:
        messages = (Message(role="user", content=text),)
        row = Instruction(id=instruction_id(messages), messages=messages, source="test")
        pair = make_pair(row, chosen="a", rejected="b", modified_instruction="", source="test")
        found += PAIRWISE.prompts(pair, JUDGE.role.template)
    return found


def judge() -> Scripted:
    """It says A, but has no room for long questions."""
    return Scripted(
        lambda request, _: (
            ("4000 tokens", "too_long") if "long" in request.messages[-1]["content"] else "[[A]]"
        )
    )


def validate(root: Path, prompts: list[Prompt], generator: Any = None) -> dict[str, Any]:
    context: Any = SimpleNamespace(
        processes=Processes(),
        meter=lambda *_: lambda rows: None,
        config=Config(model="pico"),
        run=RunDir(epath.Path(root)),
    )
    files.write_json(context.run.manifest, {"shards": 1, "iterations": 1})
    return Validation(judging=JUDGE, questions=PAIRWISE.questions(prompts)).measure(
        context, generator or judge(), "3", "identity"
    )


def test_validation_is_of_what_fits(tmp_path: Path) -> None:
    short = prompts_of("one", "two")
    wanted = {"n_prompts": 4, "accuracy": 0.5, "parsed": 1.0}
    assert validate(tmp_path, short) == wanted
    mixed = short + prompts_of("a long one")
    assert validate(tmp_path, mixed) == {**wanted, "n_prompts": 6, "n_too_long": 2}
    with pytest.raises(WorkError, match="not one of the 2 validation prompts fits"):
        validate(tmp_path, prompts_of("a long one"))


def test_a_validation_that_is_stopped_goes_on(tmp_path: Path) -> None:
    prompts = prompts_of("one", "two", "three", "four")
    first, then = judge(), judge()
    plain = first.completions

    def some() -> Iterator[Completion]:
        for number, completion in enumerate(plain()):
            if number == 3:
                raise Preempted("stopped")
            yield completion

    first.completions = some  # type: ignore[method-assign]
    with pytest.raises(Preempted):
        validate(tmp_path, prompts, first)
    assert validate(tmp_path, prompts, then) == validate(tmp_path / "other", prompts)
    assert len(then.asked) == len(prompts) - 3
    assert not list(tmp_path.rglob("*.journal"))


def test_a_judge_that_was_asked_nothing_is_not_measured(tmp_path: Path) -> None:
    run = RunDir(epath.Path(tmp_path))
    files.write_json(run.manifest, {"shards": 1, "iterations": 1})
    here = run.iteration(0)

    def measure(*questions: str) -> dict[str, Any]:
        prompts = prompts_of(*questions)
        here.heldout.prompts.write(0, prompts)
        found = judge_all(PAIRWISE.questions(prompts), judge(), JUDGE, 1)
        here.heldout.judgments.write(0, [one for _, said in found for one in said])
        context: Any = SimpleNamespace(config=Config(model="m"), run=run)
        evaluate._measure(context, here, "m", "evaluate")
        return files.read_json(here.evaluation)

    found = measure("one", "a long one")
    assert (found["n"], found["n_too_long"], found["accuracy"]) == (2, 1, 0.5)
    files.remove(here.evaluation)
    with pytest.raises(WorkError, match="not one of the 1 held-out pairs; the first: 4000 tokens"):
        measure("a long one")
    assert not here.evaluation.exists()
