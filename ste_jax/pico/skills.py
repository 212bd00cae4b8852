"""How well does a model play each role? The checker measures it on tasks kept for this alone.

The prompts, the parsers, the generator and the sampling are those of a run (`configs/pico.yaml`);
a judge is asked greedily, as where a run measures it. Tasks are drawn as they come: of kinds with
few operands some come twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

from ste_jax.generation import Completion, Generator, Message, Request, Sampling
from ste_jax.pico.answers import is_right, stated
from ste_jax.pico.corpus import ALL_CATEGORIES, ask, ask_to_check, draw_answers, user
from ste_jax.pico.traces import check_trace, compared
from ste_jax.pico.world import Share, Task, draw_task, understand
from ste_jax.prompts.parse import parse_category, parse_modified
from ste_jax.tasks.pairwise import FIRST, SECOND, parse_verdict

SAMPLING = {
    "classify": Sampling(max_new_tokens=16, temperature=0.0),
    "respond": Sampling(max_new_tokens=32, temperature=0.0),
    "check": Sampling(max_new_tokens=40, temperature=0.0),
    "modify": Sampling(max_new_tokens=64, temperature=1.0, top_p=1.0),
    "judge": Sampling(max_new_tokens=64, temperature=0.0),
}


def measure_skills(generator: Generator, share: Share, count: int) -> dict[str, float]:
    """Shares of `count` tasks (judging: as many pairs, in both orders).

    Returns:
      answers: right. categories: right.
      checks: one answer, right or wrong, and rightly found to be so.
      modified: a modified instruction that parses, is a task, and has another answer;
      modified_answered: and its answer is right.
      judge: right verdict on a right answer against a near miss or against the answer to a similar
        task, half of each; judge_consistent: in both orders; judge_parsed: with a verdict at all;
        judge_a: verdict A; judge_sound: right in every step.
    """
    draw = Random("skills")
    tasks = [draw_task(draw, share) for _ in range(count)]
    answers = _ask(generator, "respond", [(user(task.instruction),) for task in tasks])
    texts = [answer.text for answer in answers]
    found = {"answers": sum(map(is_right, tasks, texts)) / count}
    found |= _categories(generator, tasks)
    found |= _checks(generator, tasks, draw)
    found |= _modified(generator, tasks, texts)
    found |= _judgments(generator, tasks, draw)
    return found


def measure_judging(generator: Generator, share: Share, count: int) -> dict[str, float]:
    """What `measure_skills` finds of the judge, on as many pairs that are drawn anew (of kinds with
    few operands some are the same)."""
    draw = Random("judging")
    return _judgments(generator, [draw_task(draw, share) for _ in range(count)], draw)


def _categories(generator: Generator, tasks: Sequence[Task]) -> dict[str, float]:
    categories = ", ".join(ALL_CATEGORIES)
    said = _ask(
        generator,
        "classify",
        [ask("classify", instruction=t.instruction, categories=categories) for t in tasks],
    )
    right = [
        parse_category(each.text, ALL_CATEGORIES)[0] == task.category
        for task, each in zip(tasks, said, strict=True)
    ]
    return {"categories": sum(right) / len(tasks)}


def _checks(generator: Generator, tasks: Sequence[Task], draw: Random) -> dict[str, float]:
    shown = [draw_answers(draw, task)[n % 2] for n, task in enumerate(tasks)]
    prompts = [ask_to_check(task, answer) for task, answer in zip(tasks, shown, strict=True)]
    said = _ask(generator, "check", prompts)
    right = [
        each.text.endswith(f"\nIt says {compared(stated(answer), task.solution.answer)}.")
        for task, answer, each in zip(tasks, shown, said, strict=True)
    ]
    return {"checks": sum(right) / len(tasks)}


def _modified(
    generator: Generator, tasks: Sequence[Task], answers: Sequence[str]
) -> dict[str, float]:
    shown = zip(tasks, answers, strict=True)
    prompts = [ask("modify", instruction=t.instruction, answer=a) for t, a in shown]
    counts: Counter[str] = Counter()
    for task, reply in zip(tasks, _ask(generator, "modify", prompts), strict=True):
        modified, _ = parse_modified(
            reply.text, with_response=True, finish_reason=reply.finish_reason
        )
        new = understand(modified.instruction) if modified else None
        if modified and new and new.solution.answer != task.solution.answer:
            counts["modified"] += 1
            counts["modified_answered"] += is_right(new, modified.response or "")
    return {name: counts[name] / len(tasks) for name in ("modified", "modified_answered")}


def _judgments(generator: Generator, tasks: Sequence[Task], draw: Random) -> dict[str, float]:
    pairs = [draw_answers(draw, task, near=n % 2) for n, task in enumerate(tasks)]
    shown = [
        (task, a, b, label)
        for task, (right, wrong) in zip(tasks, pairs, strict=True)
        for a, b, label in ((right, wrong, FIRST), (wrong, right, SECOND))
    ]
    prompts = [
        ask("judge", instruction=task.instruction, answer_a=a, answer_b=b)
        for task, a, b, _ in shown
    ]
    counts: Counter[str] = Counter()
    hits = []
    for (task, a, b, label), said in zip(shown, _ask(generator, "judge", prompts), strict=True):
        verdict = parse_verdict(said.text, said.finish_reason).verdict
        hits.append(verdict == label)
        counts["judge_parsed"] += verdict is not None
        counts["judge_a"] += verdict == FIRST
        counts["judge_sound"] += check_trace(said.text, task.instruction, a, b).throughout
    both = sum(one and other for one, other in zip(hits[::2], hits[1::2], strict=True))
    return {
        "judge": sum(hits) / len(hits),
        "judge_consistent": both / len(tasks),
        **{name: counts[name] / len(hits) for name in ("judge_parsed", "judge_a", "judge_sound")},
    }


def _ask(generator: Generator, role: str, prompts: Sequence[Sequence[Message]]) -> list[Completion]:
    """One sample of each prompt, in their order."""
    for number, messages in enumerate(prompts):
        request = Request(id=f"{number}", messages=messages, sampling=SAMPLING[role], alone=True)
        generator.submit(request)
    found = {int(each.request_id): each for each in generator.completions()}
    return [found[number] for number in range(len(prompts))]
