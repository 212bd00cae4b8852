"""Which steps of a judgment are right? Asked only where the steps can be recomputed.

Rejection keeps a judgment whose verdict is right, whatever led to it; this measures what led to it.
Nothing but measuring may ask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from ste_jax.pico.traces import check_trace
from ste_jax.records import Pair, Prompt


def _pico(text: str, pair: Pair, prompt: Prompt) -> dict[str, bool]:
    instruction = pair.messages[-1]["content"]
    found = check_trace(text, instruction, *pair.in_order(prompt.order))
    return {**dataclasses.asdict(found), "before_the_verdict": found.before_the_verdict}


CHECKERS: Mapping[str, Callable[[str, Pair, Prompt], dict[str, bool]]] = {"pico": _pico}
"""By the name in `evaluate.sets[].traces`: which steps of a judgment's text are right."""
