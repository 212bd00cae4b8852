"""What would a start do with a run, in a few lines, and must a person agree to it?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ste_jax.config.differences import Difference
from ste_jax.run.changes import Planned, shown

ALL = "the whole run"
"""The title of all steps, where there is no run yet."""
REST = "all other steps"
"""The title of the steps that ask the seed, where that is not imported yet, and of later ones."""
_SHOWN = 20
"""How many knobs that differ are shown, at the most."""


@dataclass(frozen=True)
class Plan:
    """What a start would do, step by step."""

    root: str
    steps: Sequence[Planned]
    differ: Sequence[Difference] = ()
    """The knobs that differ from those that the run was last run with."""

    @property
    def todo(self) -> list[Planned]:
        """The steps that are not done."""
        return [step for step in self.steps if step.fate != "done"]

    @property
    def asking(self) -> list[Planned]:
        """The steps for which finished work is, or may be, set aside."""
        return [step for step in self.steps if step.asks]

    def is_within(self, titles: Collection[str]) -> bool:
        """Whether all that is not done is among steps of these titles, of which some stand for all
        steps of an iteration, or for more."""
        if {ALL, REST} & set(titles):
            return True
        todo = {whole(step.title) for step in self.todo} - set(titles)
        return all(
            any(f"iteration {word}" in titles for word in title.split() if word.isdigit())
            for title in todo
        )

    def lines(self) -> list[str]:
        """What a person reads before the first row is worked on."""
        found = _differing(self.differ, self.root) if self.differ else []
        begun = {whole(step.title) for step in self.todo}
        done = [step.title for step in self.steps if whole(step.title) not in begun]
        if not self.todo:
            return [*found, "nothing is left to do"]
        if done:
            found.append(f"done: {gathered(done)}")
        return found + [step.line for step in self.todo]

    def consequence(self) -> str:
        """A sentence on the finished work that is set aside, and why."""
        steps = gathered([step.title for step in self.asking])
        is_ = "is" if any(step.why for step in self.asking) else "may be"
        reasons = dict.fromkeys(step.why for step in self.steps if step.why)
        why = ", and ".join(list(reasons)[:2]) or "what they are made of has changed"
        return f"finished work {is_} set aside ({steps}), since {why}"


def _differing(differ: Sequence[Difference], root: str) -> list[str]:
    number = len(differ)
    head = f"{number:,} knobs differ" if number > 1 else "a knob differs"
    lines = [f"{head} from those that {root} was last run with:"]
    lines += [f"  {each.name} was {shown(each.was)} and is {shown(each.now)}" for each in differ]
    if number > _SHOWN:
        lines[_SHOWN + 1 :] = [f"  and {number - _SHOWN:,} more"]
    return [*lines, f"  (to go on under the run's own: ste run {root})"]


def whole(title: str) -> str:
    """The title of the step that a part of it belongs to: its prompts, or a labelled set."""
    return title.removeprefix("prompt set of ").partition(" on ")[0]


def gathered(titles: Sequence[str]) -> str:
    """Titles of steps in one line, without parts of steps: `evaluate 0-3, annotate 1-3`."""
    numbers: dict[str, list[int]] = {}
    for title in titles:
        words = whole(title).split(" ")
        if words[0] == "labelled":
            words = ["labelled sets"]
        place = next((i for i, word in enumerate(words) if word.isdigit()), None)
        number = int(words.pop(place)) if place is not None else None
        of = numbers.setdefault(" ".join(words), [])
        if number is not None and number not in of:
            of.append(number)
    return ", ".join(f"{name} {_spans(sorted(of))}".strip() for name, of in numbers.items())


def _spans(numbers: Sequence[int]) -> str:
    """Numbers in order, in short: `0-2, 4`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return " and ".join(
        str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans
    )
