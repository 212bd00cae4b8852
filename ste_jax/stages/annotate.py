"""How many judgments are sampled of a question, and when are there enough?

They are drawn in waves of fixed size, by sample index; a wave that was submitted is finished and
recorded. The policy `first_correct` stops after the wave that holds a right outcome; `all` draws
every sample. Where DPO lacks a failed judgment, more can be drawn at a higher temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ste_jax.config.schema import AnnotateKnobs, DpoKnobs
from ste_jax.generation import Generator
from ste_jax.records import NOT_ASKED, Judgment, Prompt
from ste_jax.stages.coroutines import Conversation, drive
from ste_jax.stages.judge import Judge, judge_samples, release
from ste_jax.stages.preferences import failed_as
from ste_jax.tasks import Question

VERSION = 1
MORE_VERSION = 1


def waves(samples: int, sizes: tuple[int, ...], first: int = 0) -> Iterator[tuple[int, ...]]:
    """`samples` sample indices from `first` on, cut into waves; the last size repeats."""
    end, number = first + samples, 0
    while first < end:
        size = sizes[min(number, len(sizes) - 1)]
        yield tuple(range(first, min(first + size, end)))
        first, number = first + size, number + 1


def annotate(
    questions: Iterable[Question], generator: Generator, judge: Judge, knobs: AnnotateKnobs
) -> Iterator[tuple[Question, list[Judgment]]]:
    """Yields every question with all judgments that were drawn of it, as the questions finish."""
    task = judge.task

    def enough(question: Question, drawn: list[Judgment]) -> bool:
        return knobs.policy == "first_correct" and any(
            task.is_right(question, each) for each in task.by_sample(question, drawn).values()
        )

    converse = _by_waves(generator, judge, list(waves(knobs.samples, knobs.waves)), enough)
    yield from drive(questions, converse, generator)


def annotate_more(
    questions: Iterable[Question],
    generator: Generator,
    judge: Judge,
    knobs: AnnotateKnobs,
    more: DpoKnobs,
) -> Iterator[tuple[Question, list[Judgment]]]:
    """Draws more judgments of questions of one prompt, until a wave holds one that failed.

    Give it the questions for which `wants_more` is true, and a `judge` that asks at the higher
    temperature. The sample indices begin where those of `annotate` end.
    """

    def enough(question: Question, drawn: list[Judgment]) -> bool:
        (prompt,) = question.prompts
        return any(failed_as(prompt.label, each) in more.negatives for each in drawn)

    indices = list(waves(more.more_samples, knobs.waves, first=knobs.samples))
    yield from drive(questions, _by_waves(generator, judge, indices, enough), generator)


def wants_more(prompt: Prompt, judgments: Iterable[Judgment], kinds: Sequence[str]) -> bool:
    """Whether a prompt has correct judgments, but none that failed in one of these ways, so that
    DPO can make no pair of them."""
    found = [failed_as(prompt.label, each) for each in judgments]
    return None in found and not {*NOT_ASKED, *kinds} & set(found)


def wanting(
    prompts: Iterable[Prompt], judgments: Iterable[Judgment], kinds: Sequence[str]
) -> list[Prompt]:
    """Those prompts that `wants_more`, of which `judgments` are all."""
    drawn: dict[str, list[Judgment]] = {}
    for each in judgments:
        drawn.setdefault(each.prompt_id, []).append(each)
    return [prompt for prompt in prompts if wants_more(prompt, drawn.get(prompt.id, ()), kinds)]


def _by_waves(
    generator: Generator,
    judge: Judge,
    indices: list[tuple[int, ...]],
    enough: Callable[[Question, list[Judgment]], bool],
) -> Callable[[Question], Conversation[list[Judgment]]]:
    """The conversation that judges one question wave by wave, until `enough` says so."""
    alone = sum(map(len, indices)) == 1

    def converse(question: Question) -> Conversation[list[Judgment]]:
        judgments: list[Judgment] = []
        for wave in indices:
            drawn = yield from judge_samples(question, judge, wave, generator, alone=alone)
            judgments += drawn
            if any(each.failure in NOT_ASKED for each in drawn):
                break  # the question itself cannot be asked: more samples would fail alike
            if enough(question, drawn):
                break
        release(generator, question)
        return judgments

    return converse
