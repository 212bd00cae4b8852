"""How is a judge asked about the pairs by which it is measured?

A run's held-out pairs, its labelled sets and `ste evaluate` all use this: a directory has the
prompts, and the judgments are written beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from etils import epath

from ste_jax.config.identity import Identity
from ste_jax.generation import Generator
from ste_jax.records import Judgment
from ste_jax.run.layout import JudgedDir
from ste_jax.run.sharded_work import ShardedWork, Words
from ste_jax.stages import judge
from ste_jax.tasks import Question, Task


def judging_stage(
    judged: JudgedDir,
    task: Task,
    made_under: Identity,
    evaluation: epath.Path,
    words: Words | None = None,
) -> ShardedWork:
    """The sharded work that makes the judgments of a directory's prompts, under an identity.
    `evaluation` is the file of their measures, `words` are the words of messages."""
    questions = judge.Questions(task, judged.prompts.read)
    return ShardedWork(
        name="evaluate",
        made_under=made_under,
        home=judged.root,
        inputs=questions.read,
        outputs=(judged.judgments,),
        input_of=questions.of,
        derived=(evaluation,),
        words=words or Words(rows=rows_of(task)),
    )


def rows_of(task: Task) -> str:
    """What messages call the questions of a task."""
    return "pairs" if task.together else "prompts"


def judging_work(
    judging: judge.Judge, votes: int
) -> Callable[[Iterable[Question], Generator], Iterator[tuple[Question, tuple[list[Judgment]]]]]:
    """The function that does this work: it draws `votes` judgments of every prompt."""

    def work(
        rows: Iterable[Question], generator: Generator
    ) -> Iterator[tuple[Question, tuple[list[Judgment]]]]:
        for row, found in judge.judge_all(rows, generator, judging, votes):
            yield row, (found,)

    return work
