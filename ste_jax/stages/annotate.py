"""How many judgments are sampled of a prompt, and when is it enough?

Waves of fixed size by sample index; a wave that was submitted is finished and recorded. Policy
`first_correct` stops after the wave that holds a correct verdict; `all` draws every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ste_jax.config import AnnotateKnobs
from ste_jax.generators.protocol import Generator
from ste_jax.records import Judgment, Prompt
from ste_jax.stages.drive import Story, drive
from ste_jax.stages.judge import Judge, judge_samples

VERSION = 1


def waves(samples: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Sample indices 0..samples-1 cut into waves; the last size repeats."""
    first, number = 0, 0
    while first < samples:
        size = sizes[min(number, len(sizes) - 1)]
        yield tuple(range(first, min(first + size, samples)))
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

    def tell(prompt: Prompt) -> Story[list[Judgment]]:
        judgments: list[Judgment] = []
        for wave in waves(knobs.samples, knobs.waves):
            drawn = yield from judge_samples(
                prompt, judge, wave, generator, alone=knobs.samples == 1
            )
            judgments += drawn
            if any(each.failure == "error" for each in drawn):
                break  # the prompt itself cannot be asked: more samples would fail alike
            correct = any(each.verdict == prompt.label for each in drawn)
            if correct and knobs.policy == "first_correct":
                break
        generator.release(prompt.id)
        return judgments

    yield from drive(prompts, tell, generator, in_flight=in_flight, poll=poll)
