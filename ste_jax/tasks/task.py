"""What must the recipe know of a way of judging, to train and measure a judge in it?

A task makes one prompt or several of a pair of answers, of which one is known to be better, and
reads what the judge replies. Prompts that are right or wrong only together are one question. Waves
of samples are drawn for questions, questions are kept or dropped, and measures count them. A task
is one `Task` in one file, entered in `ste_jax.tasks.TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ste_jax.prompts.render import Places, Template, load_template
from ste_jax.records import Judgment, Pair, Prompt, content_id
from ste_jax.system.errors import WorkError


class Verdict(NamedTuple):
    """The judge's own verdict as printed, or the kind of failure that says why there is none."""

    verdict: str | None
    failure: str | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """Prompts about a pair that are right or wrong together, in the order of `Task.orders`."""

    id: str
    pair_id: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, kw_only=True)
class Forcing:
    """How a judgment that ended without a verdict is made to give one."""

    text: str
    """The text that the judgment is continued with, unless the config has another."""
    stop: tuple[str, ...]
    """The texts that end the verdict."""
    new_tokens: int
    """How many new tokens the verdict and the text that ends it may take. A reply that takes them
    all and meets none of `stop` has ended by length: a mark in it then counts only if it has its
    line to itself (`marks.own_marks`)."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The task's words in reports, on the terminal and in a model's card."""

    asked: str
    """How a pair is judged, after `On 50 pairs,`: as `each judged in both orders`."""
    chance: str
    """What the dotted lines in plots, at `Task.chances`, stand for."""
    consistent: str = ""
    """What it is called to be right in all questions of a pair; empty if a pair makes only one."""
    verdict: str = "verdict"
    """What the judge's decision is called: a verdict, a score."""
    shown: Mapping[str, str] = field(default_factory=dict)
    """Order -> how `ste judge` names the prompt; `a` stands for the better answer."""
    heading: Callable[[Question], str] = lambda question: ""
    """Gives the heading of a question's judgments in the report."""
    shares: Mapping[str, str] = field(default_factory=dict)
    """Name of a share in `Task.shares` -> what the report calls it."""
    to_ask: str
    """The sentences of a model's card on the verdict and on how to ask."""
    usage: str = ""
    """The lines of Python in a model's card that ask about an example and read the verdict, by the
    `prompt` and `reply` of `ste_jax.commands.usage`."""


def printed(question: Question, verdicts: Sequence[str | None]) -> str | None:
    """The outcome of a question of one prompt: the verdict itself."""
    return verdicts[0]


def labelled(question: Question) -> str:
    """The right outcome of a question of one prompt: the verdict that labels the prompt."""
    return question.prompts[0].label


@dataclass(frozen=True, kw_only=True)
class Task:
    """A way of judging."""

    name: str
    version: int
    """Raise it by hand when prompts or verdicts change their meaning. Version 0 adds nothing to
    fingerprints, as in the time before tasks had versions."""
    template: str
    """The name of the judge's template, unless the config names another."""
    places: Places
    """The places that a template may and must hold."""
    orders: tuple[str, ...]
    """The values of `Prompt.order` of a pair's prompts, one for each prompt."""
    answers: int
    """How many answers a prompt shows."""
    together: bool = False
    """Whether a pair's prompts are one question; else each is one by itself, whose id is the
    prompt's and whose right outcome is its label."""
    show: Callable[[Pair, Template], Iterable[tuple[str, Mapping[str, str], str]]]
    """Gives a pair's prompts: for each of `orders` the order, the values of the template's places,
    and the verdict that is right, empty where the prompt by itself has none."""
    parse: Callable[[str, str], Verdict]
    """Reads a reply's verdict from its text and its finish reason."""
    lines_of_verdict: Callable[[str], list[int]]
    """Gives the places where the lines of a reply end that hold a verdict and nothing else."""
    outcome: Callable[[Question, Sequence[str | None]], str | None] = printed
    """Gives a question's outcome from the verdicts on its prompts; None where one is missing."""
    answer: Callable[[Question], str] = labelled
    """The right outcome."""
    decided: tuple[str, ...]
    """Outcomes that may be right."""
    undecided: tuple[str, ...] = ()
    """Outcomes that are never right (a tie)."""
    classes: tuple[str, ...] = ()
    """Those of `decided` that must all be trained on, in equal numbers if `curate.balance` is on:
    otherwise a judge might learn to print always the same. Empty where the right outcome is always
    the same."""
    forcing: Forcing
    shares: Mapping[str, str] = field(default_factory=dict)
    """Further measures: name -> the outcome of which the share among `decided` is measured."""
    chances: tuple[float, ...] = (0.5,)
    """The accuracies that chance would give; plots show them as dotted lines."""
    wording: Wording

    @property
    def questions_per_pair(self) -> int:
        """How many questions a pair makes."""
        return 1 if self.together else len(self.orders)

    @property
    def prompts_per_question(self) -> int:
        """How many prompts a question is made of."""
        return len(self.orders) if self.together else 1

    def identity(self) -> list[Any]:
        """What a fingerprint holds of the task besides the knobs; nothing for version 0."""
        return [self.name, self.version] if self.version else []

    def load_template(self, name: str) -> Template:
        """The judge's template of this name or path; the task's own if `name` is empty."""
        return load_template(name or self.template, self.places)

    def prompts(self, pair: Pair, template: Template) -> tuple[Prompt, ...]:
        """All prompts about a pair."""
        made = []
        for order, values, label in self.show(pair, template):
            messages = template.messages((), **values)
            turns = [[turn["role"], turn["content"]] for turn in messages]
            made.append(
                Prompt(
                    id=content_id("prompt", pair.id, order, turns, template.start),
                    pair_id=pair.id,
                    order=order,
                    messages=messages,
                    label=label,
                )
            )
        return tuple(made)

    def questions(self, prompts: Iterable[Prompt]) -> list[Question]:
        """Groups prompts into questions. If a pair's prompts are one question, all of them must be
        among `prompts`, or none.

        Raises:
          WorkError: a prompt of a question is missing or doubled; names the pair.
        """
        if not self.together:
            return [Question(id=each.id, pair_id=each.pair_id, prompts=(each,)) for each in prompts]
        of_pair: dict[str, list[Prompt]] = {}
        for each in prompts:
            of_pair.setdefault(each.pair_id, []).append(each)
        found = []
        for id, rows in of_pair.items():
            rows.sort(key=lambda row: self._place(row.order))
            if tuple(row.order for row in rows) != self.orders:
                orders = ", ".join(row.order for row in rows)
                raise WorkError(
                    f"pair {id} has the prompts {orders}; {self.name} asks {', '.join(self.orders)}"
                )
            found.append(Question(id=id, pair_id=id, prompts=tuple(rows)))
        return found

    def _place(self, order: str) -> int:
        return self.orders.index(order) if order in self.orders else len(self.orders)

    def by_sample(
        self, question: Question, judgments: Iterable[Judgment]
    ) -> dict[int, tuple[Judgment, ...]]:
        """A question's judgments by sample index, in the order of its prompts; an index at which
        one is missing is left out."""
        found: dict[int, dict[str, Judgment]] = {}
        for each in judgments:
            found.setdefault(each.sample, {})[each.prompt_id] = each
        ids = [prompt.id for prompt in question.prompts]
        return {
            sample: tuple(of[id] for id in ids)
            for sample, of in found.items()
            if len(of) == len(ids)
        }

    def outcome_of(self, question: Question, judgments: Sequence[Judgment]) -> str | None:
        """The outcome of a question by its judgments of one sample index, in the order of its
        prompts; None where a verdict is missing."""
        return self.outcome(question, [each.verdict for each in judgments])

    def is_right(self, question: Question, judgments: Sequence[Judgment]) -> bool:
        """Whether the outcome of judgments, as in `outcome_of`, is the right one."""
        return self.outcome_of(question, judgments) == self.answer(question)
