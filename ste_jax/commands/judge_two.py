"""What does `ste judge` print of a judge's verdict on two answers?"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ste_jax.commands.advice import for_no_verdict
from ste_jax.commands.judge import Judge, Judgment, Verdict
from ste_jax.commands.judge_options import JudgeOptions, make_judge, named_options
from ste_jax.records import NOT_ASKED
from ste_jax.run.best import locate
from ste_jax.system.errors import NoVerdict
from ste_jax.tasks import Task

_SAID = {"a": "answer a is better", "b": "answer b is better", "tie": "a tie"}


def judge_two(options: JudgeOptions, instruction: str, a: str, b: str) -> tuple[Judge, Verdict]:
    """Judge two answers to an instruction, by all questions of the judge's task. The judge is
    returned with the verdict. Raises as `Judge`."""
    judge = Judge(options)
    return judge, judge(instruction, a, b, votes=options.votes)


def as_json(verdict: Verdict, model: str, iteration: int | None) -> str:
    """The verdict as an object of JSON: its fields, the winner, and the model that was asked; of a
    run, also the iteration of the judge."""
    found: dict[str, Any] = {"model": model}
    found |= {} if iteration is None else {"iteration": iteration}
    found["winner"] = verdict.winner
    return json.dumps({**found, **dataclasses.asdict(verdict)}, indent=2, ensure_ascii=False)


def as_text(verdict: Verdict, task: Task) -> str:
    """The judgments, the votes, and what they come to."""
    together, lines = task.prompts_per_question, list[str]()
    for start in range(0, len(verdict.judgments), together):
        vote = verdict.judgments[start : start + together]
        for each in vote:
            lines += [f"--- {each.shown}, sample {each.sample} ---", each.text]
        lines.append(f"=> {_conclusion(task, vote)}\n")
    votes, unasked = verdict.votes, verdict.not_asked
    lines.append(
        f"votes: a {votes['a']}, b {votes['b']}, tie {votes['tie']}, no verdict {votes['none']} "
        f"of {sum(votes.values())}" + (f" ({unasked} could not be asked)" if unasked else "")
    )
    lines.append(f"verdict: {_SAID.get(verdict.winner or '', 'none')}")
    return "\n".join(lines)


def check_verdict(options: JudgeOptions, task: Task, verdict: Verdict) -> None:
    """Raises `NoVerdict` where not one vote has a verdict, with what can be tried."""
    if verdict.winner is not None:
        return
    failures = Counter(each.failure for each in verdict.judgments if each.failure is not None)
    found = locate(options.model)
    asked = named_options(found, options, make_judge(found, options))
    advice = for_no_verdict(task, asked, failures)
    hint = f"; try {advice}" if advice else ""
    raise NoVerdict(f"the judge ended without a {task.wording.verdict}{hint}")


def _conclusion(task: Task, judgments: Sequence[Judgment]) -> str:
    """The line that says what the judgments of one vote find, each if there are several."""
    forced = " (forced)" if any(each.forced for each in judgments) else ""
    meant = _SAID.get(judgments[0].winner or "", "no verdict")
    if any(each.failure in NOT_ASKED for each in judgments):
        meant = "could not be asked"
    if len(judgments) == 1:
        return f"{meant}{forced}"
    each_said = " and ".join(each.verdict or "none" for each in judgments)
    return f"{task.wording.verdict}s {each_said}: {meant}{forced}"
