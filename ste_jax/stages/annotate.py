"""How many judgments are sampled of a prompt, and when is it enough?

Waves of fixed size by sample index; a wave that was submitted is finished and recorded. Policy
`first_correct` stops after the wave that holds a correct verdict; `all` draws every sample. Where
DPO lacks a judgment that failed, more can be drawn at a higher temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ste_jax.config.schema import AnnotateKnobs, DpoKnobs
from ste_jax.generation import Generator
from ste_jax.records import NOT_ASKED, Judgment, Prompt
from ste_jax.stages.coroutines import Story, drive
from ste_jax.stages.curate import failed_as
from ste_jax.stages.judge import Judge, judge_samples

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
    prompts: Iterable[Prompt],
    generator: Generator,
    judge: Judge,
    knobs: AnnotateKnobs,
    *,
    in_flight: int,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Prompt, list[Judgment]]]:
    """All judgments that were drawn of every prompt, as the prompts finish."""

    def enough(prompt: Prompt, drawn: list[Judgment]) -> bool:
        return knobs.policy == "first_correct" and any(
            each.verdict == prompt.label for each in drawn
        )

    tell = _story(generator, judge, list(waves(knobs.samples, knobs.waves)), enough)
    yield from drive(prompts, tell, generator, in_flight=in_flight, poll=poll)


def annotate_more(
    prompts: Iterable[Prompt],
    generator: Generator,
    judge: Judge,
    knobs: AnnotateKnobs,
    dpo: DpoKnobs,
    *,
    in_flight: int,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Prompt, list[Judgment]]]:
    """More judgments of every prompt that `wants_more`, until a wave holds one that failed; `judge`
    asks at their temperature.

    Their sample indices begin where those of `annotate` end.
    """

    def enough(prompt: Prompt, drawn: list[Judgment]) -> bool:
        return any(failed_as(prompt.label, each) in dpo.negatives for each in drawn)

    indices = list(waves(dpo.more_samples, knobs.waves, first=knobs.samples))
    tell = _story(generator, judge, indices, enough)
    yield from drive(prompts, tell, generator, in_flight=in_flight, poll=poll)


def wants_more(prompt: Prompt, judgments: Iterable[Judgment], kinds: Sequence[str]) -> bool:
    """Whether a prompt has correct judgments, but none that failed in one of these ways, so that
    DPO can make no pair of them."""
    found = [failed_as(prompt.label, each) for each in judgments]
    return None in found and not {*NOT_ASKED, *kinds} & set(found)


def _story(
    generator: Generator,
    judge: Judge,
    indices: list[tuple[int, ...]],
    enough: Callable[[Prompt, list[Judgment]], bool],
) -> Callable[[Prompt], Story[list[Judgment]]]:
    """How one prompt is judged: wave by wave, until a wave is enough."""
    alone = sum(map(len, indices)) == 1

    def tell(prompt: Prompt) -> Story[list[Judgment]]:
        judgments: list[Judgment] = []
        for wave in indices:
            drawn = yield from judge_samples(prompt, judge, wave, generator, alone=alone)
            judgments += drawn
            if any(each.failure in NOT_ASKED for each in drawn):
                break  # the prompt itself cannot be asked: more samples would fail alike
            if enough(prompt, drawn):
                break
        generator.release(prompt.id)
        return judgments

    return tell
