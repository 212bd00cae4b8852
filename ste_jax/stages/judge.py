"""How is a judge asked one question, and what becomes of a judgment without a verdict?

Annotation, validation during fine-tuning and evaluation all use this one way to judge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ste_jax.config.schema import JudgeKnobs
from ste_jax.generation import Completion, Generator, Request
from ste_jax.prompts.render import Template
from ste_jax.prompts.sentences import last_full_sentence
from ste_jax.prompts.thoughts import closing_of, whole
from ste_jax.records import Judgment, Pair, Prompt, content_id, hash_order
from ste_jax.stages.coroutines import Conversation, drive
from ste_jax.stages.roles import Role, unasked
from ste_jax.tasks import Question, Task, Verdict, task_named

VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A judge: its role, the knobs that say what happens without a verdict, and which model of
    which iteration it is."""

    role: Role
    knobs: JudgeKnobs
    model: str
    iteration: int

    @property
    def task(self) -> Task:
        """The way that the judge judges."""
        return task_named(self.knobs.task)

    def greedy(self) -> Judge:
        """The same judge, asked at temperature 0."""
        return self.at(0.0)

    def at(self, temperature: float) -> Judge:
        """The same judge, asked at another temperature."""
        sampling = dataclasses.replace(self.role.sampling, temperature=temperature)
        return dataclasses.replace(self, role=dataclasses.replace(self.role, sampling=sampling))


def build_prompts(task: Task, pair: Pair, template: Template, orders: str) -> tuple[Prompt, ...]:
    """The prompts about a pair: those of all its questions, or with `orders` "one" those of a
    single question, chosen by hash."""
    prompts = task.prompts(pair, template)
    if orders == "both":
        return prompts
    questions = task.questions(prompts)
    return questions[hash_order(pair.id, "order") % len(questions)].prompts


class Questions:
    """Groups the prompts of shards into questions, and finds the question of a judgment."""

    def __init__(self, task: Task, prompts_of: Callable[[int], Iterable[Prompt]]) -> None:
        self._task, self._prompts_of = task, prompts_of
        self._question_of: dict[str, str] = {}

    def read(self, shard: int) -> list[Question]:
        """The questions of a shard. All prompts of a pair must be in that shard."""
        found = self._task.questions(self._prompts_of(shard))
        if self._task.together:
            self._question_of |= {prompt.id: each.id for each in found for prompt in each.prompts}
        return found

    def of(self, table: int, judgment: Judgment) -> str:
        """The id of a judgment's question, if its shard was read; else its prompt's id, which no
        question of several prompts has."""
        return self._question_of.get(judgment.prompt_id, judgment.prompt_id)


def judge_samples(
    question: Question,
    judge: Judge,
    samples: tuple[int, ...],
    generator: Generator,
    *,
    alone: bool,
) -> Conversation[list[Judgment]]:
    """Draws some samples of each prompt of a question, and forces a verdict where there is none.

    `alone` says that no further sample of the question will ever be drawn."""
    role = judge.role
    requests = [
        Request(
            id=prompt.id,
            messages=prompt.messages,
            sampling=role.sampling,
            samples=samples,
            key=role.key,
            continue_text=role.template.start,
            template_arguments=role.template_arguments,
            alone=alone,
        )
        for prompt in question.prompts
    ]
    free = yield requests
    found: list[Judgment] = []
    lacking: list[tuple[int, Request, Completion]] = []
    for prompt, request, drawn in zip(question.prompts, requests, free, strict=True):
        for done in drawn:
            found.append(_judgment(prompt, judge, done))
            if found[-1].failure in _FORCEABLE:
                lacking.append((len(found) - 1, request, done))
    if not judge.knobs.force_verdict or not lacking:
        return found
    forces = [_force(request, judge, done, generator) for _, request, done in lacking]
    answers = yield [force for force, _ in forces]
    for (place, *_), (force, text), (answer,) in zip(lacking, forces, answers, strict=True):
        if answer.finish_reason == "error":
            continue  # no room for a verdict: the judgment stays as the judge ended it
        found[place] = _forced_judgment(found[place], judge, force, text, answer)
    return found


_FORCEABLE = ("no_verdict", "cut_off")


def _judgment(prompt: Prompt, judge: Judge, done: Completion) -> Judgment:
    failed = unasked(done)
    text = done.error if failed else whole(done, judge.role.template.start)
    parsed = Verdict(None, None) if failed else judge.task.parse(text, done.finish_reason)
    ids = done.continued_ids + done.token_ids
    return Judgment(
        id=content_id("judgment", prompt.id, judge.model, judge.iteration, done.sample, text),
        prompt_id=prompt.id,
        judge=judge.model,
        iteration=judge.iteration,
        sample=done.sample,
        text=text,
        token_ids=ids,
        verdict=parsed.verdict,
        failure=failed or parsed.failure,
        forced=False,
        finish_reason=done.finish_reason,
        free_tokens=len(ids),
    )


def _force(
    request: Request, judge: Judge, done: Completion, generator: Generator
) -> tuple[Request, str]:
    """The request that continues a judgment up to a verdict, and the judgment's text up to there.

    A judgment that was cut off is shortened to its last full sentence, without white space at the
    end. A token that reaches beyond that is dropped whole, so that the text is that of the tokens
    that are kept. Thoughts that are open at the end are closed.
    """
    cut = last_full_sentence(done.text) if done.finish_reason == "length" else 0
    kept = (done.text[:cut] if cut else done.text).rstrip()
    ids, text_of_ids = generator.prefix(done, len(kept))
    start, forcing = judge.role.template.start, judge.task.forcing
    so_far = whole(dataclasses.replace(done, text=text_of_ids if ids else kept), start)
    text = closing_of(so_far) + (judge.knobs.force_text or forcing.text)
    force = Request(
        id=f"{request.id}/force/{done.sample}",
        messages=request.messages,
        sampling=dataclasses.replace(
            request.sampling,
            max_new_tokens=forcing.new_tokens,
            stop=forcing.stop,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
        ),
        key=request.key,
        continue_ids=done.continued_ids + ids if ids else (),
        continue_text=text if ids else so_far + text,
        template_arguments=request.template_arguments,
        alone=True,
    )
    return force, so_far + text


def _forced_judgment(
    free: Judgment, judge: Judge, force: Request, so_far: str, answer: Completion
) -> Judgment:
    text = so_far + answer.text
    parsed = judge.task.parse(text, answer.finish_reason)
    return dataclasses.replace(
        free,
        id=content_id("judgment", free.id, "forced", text),
        text=text,
        token_ids=answer.continued_ids + answer.token_ids,
        verdict=parsed.verdict,
        forced=True,
        free_tokens=len(force.continue_ids),
    )


def judge_all(
    questions: Iterable[Question], generator: Generator, judge: Judge, votes: int
) -> Iterator[tuple[Question, list[Judgment]]]:
    """Yields each question with `votes` judgments of every prompt of it, as the questions finish.
    This is for measuring a judge."""

    def converse(question: Question) -> Conversation[list[Judgment]]:
        samples = tuple(range(votes))
        found = yield from judge_samples(question, judge, samples, generator, alone=votes == 1)
        release(generator, question)
        return found

    yield from drive(questions, converse, generator)


def release(generator: Generator, question: Question) -> None:
    """Tells the generator that no more samples of a question's prompts will be asked for."""
    for prompt in question.prompts:
        generator.release(prompt.id)
