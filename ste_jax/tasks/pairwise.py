"""Which of two answers is better? The judge says it with a letter.

Each pair is shown in both orders, A and B. The verdict is the letter of the better answer in double
square brackets. Each order is a question of its own: a judge that names the same place in both is
right once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ste_jax.prompts.render import Places, Template, transcript
from ste_jax.records import Pair
from ste_jax.system.errors import WorkError
from ste_jax.tasks.marks import lines_of_marks, own_marks
from ste_jax.tasks.task import Forcing, Question, Task, Verdict, Wording

FIRST, SECOND, TIE = "A", "B", "tie"
ORDERS = ("ab", "ba")
"""The orders of a pair's answers: `ab` shows the better answer first."""
MARK = re.compile(r"(?<!\[)\[\[(A|B|C|tie)\]\](?!\])")
_MEANING = {"A": FIRST, "B": SECOND, "C": TIE, "tie": TIE}


def mark(verdict: str) -> str:
    """A verdict as a judge prints it."""
    return f"[[{verdict}]]"


def shown(pair: Pair, order: str) -> tuple[str, str]:
    """The answer that is shown as A, and the one that is shown as B.

    Raises:
      WorkError: `order` is none of `ORDERS`.
    """
    if order not in ORDERS:
        raise WorkError(
            f"pair {pair.id} is shown in the order {order!r}, none of {', '.join(ORDERS)}"
        )
    both = (pair.chosen, pair.rejected)
    return both if order == ORDERS[0] else both[::-1]


def _show(pair: Pair, template: Template) -> Iterator[tuple[str, Mapping[str, str], str]]:
    for order, label in zip(ORDERS, (FIRST, SECOND), strict=True):
        first, second = shown(pair, order)
        instruction = transcript(pair.messages)
        values = {"instruction": instruction, "answer_a": first, "answer_b": second}
        yield order, values, label


def parse_verdict(text: str, finish_reason: str = "stop") -> Verdict:
    """The judge's own verdict, if all of its own verdict marks agree.

    A verdict mark is one of `[[A]]`, `[[B]]`, `[[C]]` and `[[tie]]`, exactly so spelled; the last
    two both mean "tie". Which are the judge's own: see `marks.own_marks`.

    Two different verdicts of the judge's own are a "conflict"; none at all is "no_verdict", or
    "cut_off" where the text was cut off. The time is linear in the text.
    """
    own = {_MEANING[said] for said in own_marks(text, MARK, finish_reason)}
    if len(own) > 1:
        return Verdict(None, "conflict")
    if own:
        return Verdict(own.pop(), None)
    return Verdict(None, "cut_off" if finish_reason == "length" else "no_verdict")


def lines_of_verdict(text: str) -> list[int]:
    """Where the lines end that hold a verdict mark of the judge's own and nothing else."""
    return lines_of_marks(text, MARK)


def _heading(question: Question) -> str:
    (prompt,) = question.prompts
    first = "better" if prompt.order == ORDERS[0] else "worse"
    return f"With the {first} answer first: right is {prompt.label}"


_USAGE = '''\
def better(instruction, one, other):
    """Which answer is better: "one", "other", or None where the judge gives no verdict."""
    text = reply(prompt(instruction=instruction, answer_a=one, answer_b=other))
    said = set(re.findall(r"\\[\\[(A|B)\\]\\]", text))
    return {"A": "one", "B": "other"}[said.pop()] if len(said) == 1 else None


# Ask in both orders: a judge may favour a place. These two should name the same answer.
print(better("What is 2 + 3?", one="It is 5.", other="It is 6."))
print(better("What is 2 + 3?", one="It is 6.", other="It is 5."))
'''

PAIRWISE = Task(
    name="pairwise",
    version=0,
    template="judge",
    places=Places(
        "judge",
        known=frozenset({"instruction", "answer_a", "answer_b"}),
        needed=frozenset({"instruction", "answer_a", "answer_b"}),
    ),
    orders=ORDERS,
    answers=2,
    show=_show,
    parse=parse_verdict,
    lines_of_verdict=lines_of_verdict,
    decided=(FIRST, SECOND),
    undecided=(TIE,),
    classes=(FIRST, SECOND),
    forcing=Forcing(text="\n\nFinal verdict: [[", stop=("]]",), new_tokens=4),
    shares={"share_a": FIRST},
    chances=(0.5, 0.25),
    wording=Wording(
        asked="each judged in both orders",
        chance="chance for a single verdict (0.5) and for being right in both orders (0.25)",
        consistent="in both orders",
        shown={"ab": "answer a shown first", "ba": "answer a shown second"},
        heading=_heading,
        shares={"share_a": "A among A and B"},
        to_ask="The verdict is `[[A]]` or `[[B]]`, at the end. Ask in both orders.",
        usage=_USAGE,
    ),
)
