"""Is a judgment right in every step? Asked only where the steps can be recomputed.

Rejection keeps a judgment whose verdict is right, whatever led to it; this measures what led to it.
Nothing but measuring may ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ste_jax.pico.traces import check_trace
from ste_jax.records import Pair, Prompt


def _pico(text: str, pair: Pair, prompt: Prompt) -> bool:
    answers = (pair.chosen, pair.rejected) if prompt.order == "ab" else (pair.rejected, pair.chosen)
    return check_trace(text, pair.messages[-1]["content"], *answers).throughout


CHECKERS: Mapping[str, Callable[[str, Pair, Prompt], bool]] = {"pico": _pico}
"""By the name in `evaluate.sets[].traces`: whether a judgment's text is right throughout."""
