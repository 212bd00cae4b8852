"""How is one judge prompt made and asked, and what becomes of a judgment without a verdict?

Shared by annotation, by validation during fine-tuning and by evaluation: there is one way to judge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ste_jax.config.schema import JudgeKnobs
from ste_jax.generation import Completion, Generator, Request
from ste_jax.prompts.parse import Verdict, parse_verdict
from ste_jax.prompts.render import Template, transcript
from ste_jax.prompts.sentences import last_full_sentence
from ste_jax.prompts.thoughts import closing_of, whole
from ste_jax.records import ORDERS, Judgment, Pair, Prompt, content_id, hash_order
from ste_jax.stages.coroutines import Story, drive
from ste_jax.stages.roles import Role, unasked

VERSION = 2
FORCED_TOKENS = 4
"""Room for the letter and the closing brackets after a forced opening."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A judge: the role that asks, what is done without a verdict, and who it is."""

    role: Role
    knobs: JudgeKnobs
    model: str
    iteration: int

    def greedy(self) -> Judge:
        """The same, asked at temperature 0."""
        return self.at(0.0)

    def at(self, temperature: float) -> Judge:
        """The same, asked at another temperature."""
        sampling = dataclasses.replace(self.role.sampling, temperature=temperature)
        return dataclasses.replace(self, role=dataclasses.replace(self.role, sampling=sampling))


def build_prompts(pair: Pair, template: Template) -> tuple[Prompt, Prompt]:
    """The pair in both orders: the label is A where the chosen answer is shown first."""
    made = []
    for order in ORDERS:
        first, second = pair.in_order(order)
        messages = template.messages(
            instruction=transcript(pair.messages), answer_a=first, answer_b=second
        )
        turns = [[turn["role"], turn["content"]] for turn in messages]
        made.append(
            Prompt(
                id=content_id("prompt", pair.id, order, turns, template.start),
                pair_id=pair.id,
                order=order,
                messages=messages,
                label="A" if order == "ab" else "B",
            )
        )
    return made[0], made[1]


def one_prompt(pair: Pair, template: Template) -> tuple[Prompt]:
    """The pair in one of its orders, by hash: A is right in about half of the pairs."""
    return (build_prompts(pair, template)[hash_order(pair.id, "order") % 2],)


def judge_samples(
    prompt: Prompt,
    judge: Judge,
    samples: tuple[int, ...],
    generator: Generator,
    *,
    alone: bool,
) -> Story[list[Judgment]]:
    """The story of some samples of one prompt: judge, then force a verdict where there is none.
    `alone`: there will never be another sample of it."""
    role = judge.role
    request = Request(
        id=prompt.id,
        messages=prompt.messages,
        sampling=role.sampling,
        samples=samples,
        key=role.key,
        continue_text=role.template.start,
        template_arguments=role.template_arguments,
        alone=alone,
    )
    (free,) = yield (request,)
    judgments = {done.sample: _judgment(prompt, judge, done) for done in free}
    if judge.knobs.force_verdict:
        lacking = [done for done in free if judgments[done.sample].failure in _FORCEABLE]
        forces = [_force(request, judge, done, generator) for done in lacking]
        if forces:
            answers = yield [force for force, _ in forces]
            for done, (force, text), (answer,) in zip(lacking, forces, answers, strict=True):
                if answer.finish_reason == "error":
                    continue  # no room for a verdict: the judgment stays as the judge ended it
                judgments[done.sample] = _forced_judgment(
                    judgments[done.sample], force, text, answer
                )
    return [judgments[sample] for sample in samples]


_FORCEABLE = ("no_verdict", "cut_off")


def _judgment(prompt: Prompt, judge: Judge, done: Completion) -> Judgment:
    failed = unasked(done)
    text = done.error if failed else whole(done, judge.role.template.start)
    parsed = Verdict(None, None) if failed else parse_verdict(text, done.finish_reason)
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

    What was cut off ends with its last full sentence; white space at its end goes. Where a token
    holds more than that, it goes as a whole: the text kept is the text of the tokens kept. Thoughts
    that are open at its end are closed.
    """
    cut = last_full_sentence(done.text) if done.finish_reason == "length" else 0
    kept = (done.text[:cut] if cut else done.text).rstrip()
    ids, text_of_ids = generator.prefix(done, len(kept))
    start = judge.role.template.start
    so_far = whole(dataclasses.replace(done, text=text_of_ids if ids else kept), start)
    text = closing_of(so_far) + judge.knobs.force_text
    force = Request(
        id=f"{request.id}/force/{done.sample}",
        messages=request.messages,
        sampling=dataclasses.replace(
            request.sampling,
            max_new_tokens=FORCED_TOKENS,
            stop=("]]",),
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


def _forced_judgment(free: Judgment, force: Request, so_far: str, answer: Completion) -> Judgment:
    text = so_far + answer.text
    parsed = parse_verdict(text, answer.finish_reason)
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
    prompts: Iterable[Prompt],
    generator: Generator,
    judge: Judge,
    votes: int,
    *,
    in_flight: int,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Prompt, list[Judgment]]]:
    """`votes` judgments of every prompt, as they finish: for measuring a judge."""

    def tell(prompt: Prompt) -> Story[list[Judgment]]:
        found = yield from judge_samples(
            prompt, judge, tuple(range(votes)), generator, alone=votes == 1
        )
        generator.release(prompt.id)
        return found

    yield from drive(prompts, tell, generator, in_flight=in_flight, poll=poll)
