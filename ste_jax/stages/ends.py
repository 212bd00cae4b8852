"""Where does a judgment end when a judge learns it?

It ends where the judge ended it. A judgment that was cut off by length stops in the middle of a
sentence, which must not be learnt as an end: it is cut back to the end of the line that holds its
verdict. Text without token ids (from an endpoint) can be cut anywhere. Token ids are those that
were sampled, and only a beginning of them can be kept: one whose text ends there, but for white
space. A mark of thoughts that the chat template wrote is in the text and not in the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ste_jax.prompts.thoughts import without_put_back
from ste_jax.records import Judgment
from ste_jax.tasks import Task

Cut = Callable[[Sequence[int], str], tuple[int, ...] | None]
"""Takes token ids and the beginning of their text. Gives the first of the ids, those of that text
but for white space at its end; None if no number of them has this text."""


def never(ids: Sequence[int], text: str) -> tuple[int, ...] | None:
    """A `Cut` that never cuts, for where there is no tokenizer that could read the token ids."""
    return None


class End(NamedTuple):
    """What is learnt of a judgment."""

    text: str
    token_ids: tuple[int, ...]


def ended(judgment: Judgment, task: Task, cut: Cut) -> End | None:
    """What is learnt of a judgment with a verdict; None if it was cut off and has no end.

    A forced verdict is an end: the reasoning before it was cut back to a full sentence.
    """
    if not is_cut_off(judgment):
        return End(judgment.text, judgment.token_ids)
    end = end_of_verdict(judgment.text, judgment.verdict, task)
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
    """Whether neither the judge nor a forced verdict ended the judgment."""
    return judgment.finish_reason == "length" and not (judgment.forced and judgment.verdict)


_TRIES = 8
"""How many lines are tried at most: for each of them the text up to there is parsed."""


def end_of_verdict(text: str, verdict: str | None, task: Task) -> int | None:
    """The place where the first line ends that gives this verdict, both read as a text that was cut
    off and read as one that was ended there; None if there is no such line."""
    for end in task.lines_of_verdict(text)[:_TRIES]:
        said = text[:end].rstrip()
        # Both ways, since what is learnt is a text that was ended there.
        if all(task.parse(said, why).verdict == verdict for why in ("length", "stop")):
            return len(said)
    return None
