"""Which steps of a judgment are right, where they can be recomputed?

Rejection sampling keeps a judgment whose verdict is right, whatever reasoning led to it; this
measures the reasoning. Only measuring may use it, never the training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ste_jax.pico.traces import check_trace
from ste_jax.pico.world import understand
from ste_jax.records import Pair, Prompt
from ste_jax.tasks.pairwise import PAIRWISE, shown


@dataclass(frozen=True)
class Checker:
    """Recomputes the steps of judgments of some kind of pairs."""

    task: str
    """The name of the task whose judgments it checks."""
    steps: Callable[[str, Pair, Prompt], dict[str, bool]]
    """Says which steps of a judgment's text are right: name of a step -> whether it is."""
    knows: Callable[[Pair], bool]
    """Says whether judgments of a pair can be checked."""
    meanings: Mapping[str, str]
    """Name of a step -> what it means that the step is right, for readers of the figures."""


def _pico(text: str, pair: Pair, prompt: Prompt) -> dict[str, bool]:
    instruction = pair.messages[-1]["content"]
    found = check_trace(text, instruction, *shown(pair, prompt.order))
    return {**dataclasses.asdict(found), "before_the_verdict": found.before_the_verdict}


CHECKERS: Mapping[str, Checker] = {
    "pico": Checker(
        task=PAIRWISE.name,
        steps=_pico,
        knows=lambda pair: understand(pair.messages[-1]["content"]) is not None,
        meanings={
            "formed": "it is written as a check of both answers that ends in a verdict",
            "solved": "it solves the task rightly, with every step of the way",
            "quoted": "it quotes both answers, and its own result each time, as they are",
            "compared": "what it calls the same is the same, and what it calls different is "
            "different",
            "concluded": "the verdict is the one answer that it found to be the same as its own",
            "before_the_verdict": "all of these but the last",
        },
    )
}
"""The checkers by their names in `evaluate.sets[].traces`."""
