"""How many rows came through each step of a run, and how many judgments were drawn?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ste_jax.reporting.funnel import check_sums, iteration_steps, pool_steps, reasons
from ste_jax.reporting.page import Child, Safe, note, section, table, tag
from ste_jax.reporting.phases import Counts, Reports, Step, report_of
from ste_jax.reporting.sections.common import NOT_YET, judge_name
from ste_jax.reporting.tables import number
from ste_jax.tasks import Task


def funnel_section(counts: dict[str, Any], reports: Reports) -> Safe:
    """A section on the rows of each step from the source to the pairs, and on the rows lost."""
    steps = pool_steps(counts)
    if not steps:
        return section("The funnel", note(NOT_YET))
    return section(
        "The funnel",
        _bars("instructions", steps),
        note(
            "Beside a step: what did not reach it, and why. The selection's reasons are of the "
            "whole pool, rows without a category among them."
        ),
        _splits(counts["selection"]["kept"], counts["pairs"]),
        _sums(counts, reports),
    )


def _bars(what: str, steps: Sequence[Step]) -> Safe:
    most = max((n for _, n, _ in steps), default=0) or 1
    header = tag("tr", [tag("th", name) for name in (what, "rows", "", "")])
    rows = [
        tag(
            "tr",
            tag("th", name),
            tag("td", number(n)),
            tag("td", tag("div", tag("i", style=f"width:{100 * n / most:.2f}%"), class_="bar")),
            tag("td", reasons(lost)),
        )
        for name, n, lost in steps
    ]
    inner = tag("table", tag("thead", header), tag("tbody", rows), class_="funnel")
    return tag("div", inner, class_="scroll")


def _splits(kept: Mapping[str, Counts], pairs: dict[str, Any]) -> Child:
    if not kept:
        return ""
    categories = sorted({category for of in kept.values() for category in of})
    made = pairs["by_split"] if pairs["complete"] else {}
    body = [
        [
            split,
            *(number(of.get(category, 0)) for category in categories),
            number(sum(of.values())),
            number(made.get(split, 0) if made else None),
        ]
        for split, of in kept.items()
    ]
    header = ["selected instructions", *categories, "all", "pairs made"]
    return [tag("h3", "By split and category"), table(header, body)]


def _sums(counts: dict[str, Any], reports: Reports) -> Safe:
    wrong = check_sums(counts, reports)
    if not wrong:
        return note("Every count that can be checked by now adds up with its parts.")
    head = tag("p", "Counts that do not add up; the run's files were changed by something else:")
    return tag("div", head, tag("ul", [tag("li", each) for each in wrong]), class_="warn")


def judgments_section(task: Task, counts: dict[str, Any], reports: Reports) -> Safe:
    """A section on the judgments drawn for the training of each iteration, and those kept."""
    title = "Judgments drawn for training"
    if not counts["iterations"]:
        return section(title, note(NOT_YET))
    legend = tag(
        "p",
        tag("i", class_="key own"), "verdict by itself",
        tag("i", class_="key force"), "by force",
        tag("i", class_="key none"), "none",
        class_="note",
    )  # fmt: skip
    return section(title, legend, [_drawn(task, each, reports) for each in counts["iterations"]])


def _drawn(task: Task, each: dict[str, Any], reports: Reports) -> list[Safe]:
    total = each["judgments"]
    shares = [("own", each["parsed"]), ("force", each["forced"]), ("none", each["unparsed"])]
    split = [tag("i", class_=k, style=f"width:{100 * n / max(total, 1):.2f}%") for k, n in shares]
    kept = each["kept"]
    waves = ", ".join(f"{number(n)} after {k}" for k, n in each["waves"].items())
    remark = (
        f"{number(total)} judgments: {number(each['parsed'])} with a verdict of their own, "
        f"{number(each['forced'])} forced, {number(each['unparsed'])} without; "
        f"{number(each['correct'])} correct. Prompts by waves drawn: {waves or 'none yet'}."
    )
    if each["complete"]:
        of_each = (f"{number(kept[name])} {name}" for name in task.classes or task.decided[:1])
        remark += f" Kept: {', '.join(of_each)}."
    if each["failures"]:
        remark += f" Why no verdict of their own: {reasons(each['failures'])}."
    for name, found in each["phases"].items():
        remark += f" {report_of(reports, name).drawn(found)}".rstrip()
    return [
        tag("h3", judge_name(each["iteration"])),
        tag("div", split, class_="bar"),
        note(remark),
        _bars("prompts", iteration_steps(each, reports)),
    ]
