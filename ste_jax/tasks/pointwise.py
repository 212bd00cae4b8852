"""How good is one answer? The judge says it with a score from 1 to 10.

Each answer of a pair is shown by itself, and the judge does not learn that there is another. The
score stands in double square brackets. Both prompts are one question: it is right where the better
answer has the higher score, in two judgments with the same sample index. Equal scores are a tie,
which is not right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ste_jax.prompts.render import Places, Template, transcript
from ste_jax.records import Pair
from ste_jax.tasks.marks import lines_of_marks, own_marks
from ste_jax.tasks.task import Forcing, Question, Task, Verdict, Wording

LOWEST, HIGHEST = 1, 10
CHOSEN, REJECTED, TIE = "chosen", "rejected", "tie"
ORDERS = (CHOSEN, REJECTED)
"""The orders, which here say what answer of the pair a prompt shows."""
MARK = re.compile(r"(?<!\[)\[\[(-?(?:0|[1-9]\d{0,8})(?:[.,/]\d{1,9})?)\]\](?!\])")
"""Matches any number in double square brackets, so that a wrong score is reported as such."""


def _show(pair: Pair, template: Template) -> Iterator[tuple[str, Mapping[str, str], str]]:
    for order, answer in zip(ORDERS, (pair.chosen, pair.rejected), strict=True):
        yield order, {"instruction": transcript(pair.messages), "answer": answer}, ""


def parse_score(text: str, finish_reason: str = "stop") -> Verdict:
    """The judge's own score, if all of its own marks agree.

    A mark is a number in double square brackets, as `[[7]]`. Which are the judge's own: see
    `marks.own_marks`. Two different numbers are a "conflict". One that is not whole (`[[7.5]]`,
    `[[7/10]]`) is "not_whole", a whole one that is not from 1 to 10 is "out_of_range". No mark at
    all is "no_verdict", or "cut_off" where the text was cut off. The time is linear in the text.
    """
    own = set(own_marks(text, MARK, finish_reason))
    if len(own) > 1:
        return Verdict(None, "conflict")
    if not own:
        return Verdict(None, "cut_off" if finish_reason == "length" else "no_verdict")
    said = own.pop()
    if not said.removeprefix("-").isdecimal():
        return Verdict(None, "not_whole")
    if not LOWEST <= int(said) <= HIGHEST:
        return Verdict(None, "out_of_range")
    return Verdict(said, None)


def _lines_of_score(text: str) -> list[int]:
    return lines_of_marks(text, MARK)


def compare_scores(question: Question, verdicts: Sequence[str | None]) -> str | None:
    """The answer of a pair that has the higher score, or a tie; None if a score is missing."""
    chosen, rejected = verdicts
    if chosen is None or rejected is None:
        return None
    if int(chosen) == int(rejected):
        return TIE
    return CHOSEN if int(chosen) > int(rejected) else REJECTED


_USAGE = '''\
def score(instruction, answer):
    """The answer's score from 1 to 10; None where the judge gives none."""
    text = reply(prompt(instruction=instruction, answer=answer))
    said = set(re.findall(r"\\[\\[(\\d+)\\]\\]", text))
    return int(said.pop()) if len(said) == 1 else None


print(score("What is 2 + 3?", "It is 5."), score("What is 2 + 3?", "It is 6."))
'''

POINTWISE = Task(
    name="pointwise",
    version=1,
    template="score",
    places=Places(
        "judge",
        known=frozenset({"instruction", "answer"}),
        needed=frozenset({"instruction", "answer"}),
    ),
    orders=ORDERS,
    answers=1,
    together=True,
    show=_show,
    parse=parse_score,
    lines_of_verdict=_lines_of_score,
    outcome=compare_scores,
    answer=lambda question: CHOSEN,
    decided=(CHOSEN, REJECTED),
    undecided=(TIE,),
    forcing=Forcing(text="\n\nScore: [[", stop=("]]",), new_tokens=4),
    chances=(0.5,),
    wording=Wording(
        asked="each answer scored by itself",
        chance="half of the pairs, which chance gives where no two scores are equal",
        verdict="score",
        shown={CHOSEN: "answer a", REJECTED: "answer b"},
        heading=lambda question: "Each answer by itself: the better one is to have more",
        to_ask="The score is a whole number from `[[1]]` to `[[10]]`, at the end. Ask about each "
        "answer by itself; of two, the better one is that with the higher score.",
        usage=_USAGE,
    ),
)
