"""What did the judges say of some pairs?"""

from __future__ import annotations

from ste_jax.reporting.examples import Example, Said, View
from ste_jax.reporting.page import Child, Safe, line, note, section, tag, words
from ste_jax.reporting.sections.common import NOT_YET, judge_name
from ste_jax.tasks import Task


def reading_section(task: Task, chosen: list[Example]) -> Safe:
    """A section with the judgments of the chosen held-out pairs, for a person to read."""
    title = "Judgments to read"
    if not chosen:
        return section(title, note(NOT_YET))
    remark = (
        "Held-out pairs drawn by their id: some that the last judge judges better than the first, "
        "some worse, the rest the same. Which answer is better was constructed, not checked."
    )
    return section(title, note(remark), [example_details(task, each) for each in chosen])


def example_details(task: Task, example: Example) -> Safe:
    """A pair with its judgments, as a part that the reader can unfold."""
    pair, change = example.pair, example.last_right - example.first_right
    kind = "good" if change > 0 else "bad" if change < 0 else ""
    total = task.questions_per_pair
    result = f"{example.first_right} of {total} right, then {example.last_right}"
    if not change:
        result = f"{example.last_right} of {total} right"
    asked = [
        [tag("h4", f"Instruction ({turn['role']})"), words(turn["content"])]
        for turn in pair.messages
    ]
    known_by = "by construction" if pair.source == "constructed" else "by the label"
    answers = tag(
        "div",
        tag("div", tag("h4", f"Better answer, {known_by}"), words(pair.chosen)),
        tag("div", tag("h4", "Worse answer"), words(pair.rejected)),
        class_="answers",
    )
    summary = tag(
        "summary",
        tag("span", result, class_=f"pill {kind}".rstrip()),
        line(pair.messages[-1]["content"]),
    )
    modified: Child = ""
    if pair.modified_instruction:
        head = tag("h4", "The worse answer was written for this instruction")
        modified = [head, words(pair.modified_instruction)]
    views = [_view(task, each) for each in example.views]
    return tag("details", summary, *asked, answers, modified, views)


def _view(task: Task, view: View) -> list[Safe]:
    judged = [_said(task, view, index, said) for index, said in sorted(view.said.items())]
    return [tag("h4", task.wording.heading(view.question)), *judged]


def _said(task: Task, view: View, index: int, said: list[Said]) -> Safe:
    outcome = task.outcome(view.question, [each.verdict for each in said])
    right = outcome == task.answer(view.question)
    result = f"no {task.wording.verdict}"
    if any(each.verdict is not None for each in said):
        verdicts = [each.verdict or "none" for each in said]
        result = f"{task.wording.verdict} {' and '.join(verdicts)}"
    result += f", {'right' if right else 'wrong'}"
    if any(each.forced for each in said):
        result += ", forced"
    failures = [each.failure.replace("_", " ") for each in said if each.failure is not None]
    if failures:
        result += f" ({', '.join(failures)})"
    pill = tag("span", line(result), class_="pill good" if right else "pill bad")
    texts = [words(each.text) for each in said]
    return tag("details", tag("summary", pill, judge_name(index)), *texts)
