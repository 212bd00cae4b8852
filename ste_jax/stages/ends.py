"""Where does a judgment end that is learnt?

Where the judge ended it. One that was cut off by length ends in the middle of a sentence, which
must not be learnt as an end: it is cut back to the end of the line that holds its verdict. Text
without token ids (an endpoint's) can be cut anywhere. Token ids are those that were sampled, and
only a beginning of them can be kept: one whose text ends there, but for white space. The mark of
thoughts that a chat template wrote stands in the text, and not in the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ste_jax.prompts.parse import lines_of_verdict, parse_verdict
from ste_jax.prompts.thoughts import without_put_back
from ste_jax.records import Judgment

Cut = Callable[[Sequence[int], str], tuple[int, ...] | None]
"""The beginning of some token ids that says a text, but for white space at its end; None if there
is none."""


def never(ids: Sequence[int], text: str) -> tuple[int, ...] | None:
    """A `Cut` for judgments without token ids: there is nobody who could read these."""
    return None


class End(NamedTuple):
    """What is learnt of a judgment."""

    text: str
    token_ids: tuple[int, ...]


def ended(judgment: Judgment, cut: Cut) -> End | None:
    """What is learnt of a judgment with a verdict; None if it was cut off and has no end.

    A forced verdict is an end: what was cut off before it was cut back to a full sentence then.
    """
    if not is_cut_off(judgment):
        return End(judgment.text, judgment.token_ids)
    end = end_of_verdict(judgment.text, judgment.verdict)
    if end is None:
        return None
    text = judgment.text[:end]
    if not judgment.token_ids:
        return End(text, ())
    ids = cut(judgment.token_ids, text)
    if ids is None and (written := without_put_back(text)) != text:
        ids = cut(judgment.token_ids, written)
    return None if ids is None else End(text, ids)


def is_cut_off(judgment: Judgment) -> bool:
    """Whether a judgment's end is none that a judge, or a forced verdict, made."""
    return judgment.finish_reason == "length" and not (judgment.forced and judgment.verdict)


_TRIES = 8
"""How many lines are tried at most: each means that the text up to there is read."""


def end_of_verdict(text: str, verdict: str | None) -> int | None:
    """Where the first line ends that holds this verdict alone, as a text that was cut off has it of
    its own, and with which the text up to there has it too."""
    for end in lines_of_verdict(text)[:_TRIES]:
        said = text[:end].rstrip()
        # Both: what is learnt is a text that was ended there.
        if all(parse_verdict(said, why).verdict == verdict for why in ("length", "stop")):
            return len(said)
    return None
