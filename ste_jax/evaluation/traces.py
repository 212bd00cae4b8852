"""Which steps of a judgment are right? Asked only where the steps can be recomputed.

Rejection keeps a judgment whose verdict is right, whatever led to it; this measures what led to it.
Nothing but measuring may ask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ste_jax.pico.traces import check_trace
from ste_jax.pico.world import understand
from ste_jax.records import Pair, Prompt


@dataclass(frozen=True)
class Checker:
    """What can be told of judgments where their steps can be recomputed."""

    steps: Callable[[str, Pair, Prompt], dict[str, bool]]
    """Which steps of a judgment's text are right."""
    knows: Callable[[Pair], bool]
    """Whether it can tell that of judgments of a pair."""
    meanings: Mapping[str, str]
    """What each step being right means, for who reads the figures."""


def _pico(text: str, pair: Pair, prompt: Prompt) -> dict[str, bool]:
    instruction = pair.messages[-1]["content"]
    found = check_trace(text, instruction, *pair.in_order(prompt.order))
    return {**dataclasses.asdict(found), "before_the_verdict": found.before_the_verdict}


CHECKERS: Mapping[str, Checker] = {
    "pico": Checker(
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
"""By the name in `evaluate.sets[].traces`."""
