"""Which steps of a judgment are right? Asked only where the steps can be recomputed.

Rejection keeps a judgment whose verdict is right, whatever led to it; this measures what led to it.
Nothing but measuring may ask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from ste_jax.pico.traces import check_trace
from ste_jax.pico.world import understand
from ste_jax.records import Pair, Prompt


def _pico(text: str, pair: Pair, prompt: Prompt) -> dict[str, bool]:
    instruction = pair.messages[-1]["content"]
    found = check_trace(text, instruction, *pair.in_order(prompt.order))
    return {**dataclasses.asdict(found), "before_the_verdict": found.before_the_verdict}


CHECKERS: Mapping[str, Callable[[str, Pair, Prompt], dict[str, bool]]] = {"pico": _pico}
"""By the name in `evaluate.sets[].traces`: which steps of a judgment's text are right."""

RECOMPUTABLE: Mapping[str, Callable[[Pair], bool]] = {
    "pico": lambda pair: understand(pair.messages[-1]["content"]) is not None
}
"""Whether the steps of judgments of a pair can be told right or wrong."""

MEANINGS: Mapping[str, Mapping[str, str]] = {
    "pico": {
        "formed": "it is written as a check of both answers that ends in a verdict",
        "solved": "it solves the task rightly, with every step of the way",
        "quoted": "it quotes both answers, and its own result each time, as they are",
        "compared": "what it calls the same is the same, and what it calls different is different",
        "concluded": "the verdict is the one answer that it found to be the same as its own",
        "before_the_verdict": "all of these but the last",
    }
}
"""What each step being right means, for who reads the figures."""
