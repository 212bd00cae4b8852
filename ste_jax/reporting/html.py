"""What does a run look like to somebody who reads it: one HTML file, complete in itself.

Each section is a function from the run to markup, and says so where its part of the run is not
there yet. Nothing in the file tells the time: the same run gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from ste_jax.config.schema import EvaluateKnobs
from ste_jax.errors import WorkError
from ste_jax.evaluation.metrics import compare
from ste_jax.reporting.columns import read_verdicts
from ste_jax.reporting.examples import Example, Said, View, heldout_examples, labelled_examples
from ste_jax.reporting.funnel import (
    Counts,
    Step,
    check_sums,
    finetuning_stages,
    funnel,
    iteration_steps,
    pool_steps,
    read_config,
    reasons,
)
from ste_jax.reporting.lengths import left_out, length_table, lengths_section
from ste_jax.reporting.page import Child, Safe, line, note, page, section, table, tag, words
from ste_jax.reporting.plots import agreement_plot, loss_plot, share_of
from ste_jax.reporting.tables import (
    cells,
    finetuning_table,
    iteration_table,
    measure,
    number,
    stage_table,
)
from ste_jax.run.layout import IterationDir, RunDir
from ste_jax.system import files

_NOT_YET = "Not yet: the run has not come this far."
_MEASURES = {
    "accuracy": "single verdict",
    "consistent_accuracy": "right in both orders",
    "majority_accuracy": "majority vote",
}
_STEPS = "step_"
"""What the shares of a judgment's steps begin with."""
_HABITS = {
    "parsed_unforced": "verdict by itself",
    "forced": "by force",
    "unparsed": "no verdict",
    "ties": "tie",
    "accuracy_unforced": "right where by itself",
    "share_a": "A among A and B",
}


def write_report(run: RunDir) -> epath.Path:
    """Write `report/index.html` of a run, however far it has come; returns its path.

    Raises:
      RequestError: not a run. WorkError: a damaged table, or the file cannot be written.
    """
    counts, lengths = funnel(run), length_table(run)
    config = read_config(run)
    evaluated = [each for each in run.iterations() if each.evaluation.exists()]
    evaluations = {each.index: files.read_json(each.evaluation) for each in evaluated}
    title = f"Self-taught evaluator: {config.get('name', run.root.name)}"
    text = page(
        title,
        tag("h1", title),
        _what(run, config, list(evaluations)),
        _agreement(evaluations),
        *_labelled(run, evaluations),
        _difference(evaluated, evaluations, config),
        _funnel(counts),
        lengths_section(lengths, *cells(lengths)),
        _judgments_drawn(counts),
        _tables(run, counts),
        _loss(run),
        _to_read(heldout_examples(run)),
        _config(run),
    )
    files.write_whole(run.report, text.encode("utf-8", "replace"))
    return run.report


# ---------------------------------------------------------------------------------------------
# The run and its result


def _what(run: RunDir, config: dict[str, Any], evaluated: list[int]) -> Safe:
    digest = "not written yet"
    if run.config.exists():
        digest = hashlib.blake2b(run.config.read_bytes(), digest_size=8).hexdigest()
    asked = config.get("iterations", "?")
    facts = {
        "seed model": str(config.get("model", "?")),
        "config digest": digest,
        "random seed": str(config.get("seed", "?")),
        "iterations": f"{max(evaluated, default=0)} of {asked} evaluated",
    }
    rows = [tag("tr", tag("th", key), tag("td", value)) for key, value in facts.items()]
    return section("This run", tag("table", rows, class_="facts"))


def _judge_name(index: int) -> str:
    return "seed" if index == 0 else f"iteration {index}"


_PLOT = (
    "Whiskers are 95% intervals, resampled by pair. Dotted: chance for a single verdict (0.5) and "
    "for being right in both orders (0.25). A missing verdict counts as wrong."
)


def _agreement(evaluations: dict[int, dict[str, Any]]) -> Safe:
    title = "Agreement with constructed labels"
    if not evaluations:
        return section(title, note(_NOT_YET))
    last = evaluations[max(evaluations)]
    series = {
        name: [share_of(each, key) for each in evaluations.values()]
        for key, name in _measures(last).items()
    }
    return section(
        title,
        agreement_plot([_judge_name(index) for index in evaluations], series),
        note(
            f"On {last['n']} held-out pairs, each judged in both orders; votes: {last['votes']}."
            f"{left_out(last)} The labels were constructed by the recipe itself and not checked by "
            f"people. {_PLOT}"
        ),
        tag("h3", "How they judge"),
        _habits(evaluations),
    )


def _labelled(run: RunDir, evaluations: dict[int, dict[str, Any]]) -> list[Safe]:
    """A section for each set of labelled pairs."""
    names = dict.fromkeys(name for each in evaluations.values() for name in each.get("sets", {}))
    found = []
    for name in names:
        by_judge = {
            index: each["sets"][name]
            for index, each in evaluations.items()
            if name in each.get("sets", {})
        }
        last = by_judge[max(by_judge)]
        measures = {**_measures(last), "sound": "every step right"}
        series = {
            told: [share_of(each, key) for each in by_judge.values()]
            for key, told in measures.items()
            if key in last
        }
        parts: list[Child] = [
            agreement_plot([_judge_name(index) for index in by_judge], series),
            note(_of_set(last, greedy=any(each.get("greedy") for each in evaluations.values()))),
            _habits(by_judge),
        ]
        if any(key.startswith(_STEPS) for key in last):
            parts += [tag("h3", "Step by step"), _steps(by_judge), *_meanings(last)]
        for column in last["by"]:
            parts += [tag("h3", f"By {column}"), _by(column, by_judge)]
        chosen = labelled_examples(run, name)
        if chosen and len(by_judge) > 1:
            told = (
                "Drawn by id: up to five that the last judge judges better than the first, and up "
                "to two that it judges worse."
            )
            parts += [tag("h3", "Judgments to read"), note(told), *map(_example, chosen)]
        found.append(section(f"Accuracy on {name}", *parts))
    return found


def _measures(evaluation: dict[str, Any]) -> dict[str, str]:
    """What is told of a judge: of one vote there is no majority."""
    several = evaluation["votes"] > 1
    return {
        key: told for key, told in _MEASURES.items() if several or not key.startswith("majority")
    }


def _of_set(measured: dict[str, Any], *, greedy: bool) -> str:
    """What is measured on a labelled set."""
    told = f" {measured['told']}" if measured.get("told") else ""
    asked = "greedily" if greedy else "as in annotation"
    return (
        f"On {measured['n']} pairs, each judged in both orders: {measured['what']}."
        f"{left_out(measured)}{told} Nothing was learnt or chosen by them. Judges were asked "
        f"{asked}. {_PLOT}"
    )


def _meanings(measured: dict[str, Any]) -> list[Safe]:
    """What it means that a step is right, for each step."""
    told = "; ".join(
        f"{name.replace('_', ' ')}: {meaning}"
        for name, meaning in measured.get("meanings", {}).items()
    )
    return [note(f"{told[0].upper()}{told[1:]}.")] if told else []


def _steps(by_judge: dict[int, dict[str, Any]]) -> Safe:
    """How often each step of the judgments is right."""
    rows = []
    for index, evaluation in by_judge.items():
        row: dict[str, Any] = {"right in this step": _judge_name(index)}
        for key in evaluation:
            if key.startswith(_STEPS):
                row[key.removeprefix(_STEPS)] = evaluation[key]  # and what ends in _ci95
        rows.append(row)
    return _across(rows)


def _by(column: str, by_judge: dict[int, dict[str, Any]]) -> Safe:
    """Accuracy of every judge on each group of a set's pairs."""
    groups = by_judge[max(by_judge)]["by"][column]
    too_long = any(each.get("n_too_long") for each in groups.values())
    judges = map(_judge_name, by_judge)  # a column may have one of these names
    header = [column, "pairs", *(["too long"] if too_long else []), *judges]
    body = []
    for group, of in groups.items():
        measured = [each["by"].get(column, {}).get(group, {}) for each in by_judge.values()]
        told = [measure(each.get("accuracy"), each.get("accuracy_ci95")) for each in measured]
        left_out = [number(of.get("n_too_long"))] if too_long else []
        body.append([group, number(of["n"]), *left_out, *told])
    return table(header, body)


def _habits(evaluations: dict[int, dict[str, Any]]) -> Safe:
    """Shares that are no merit by themselves, of the single verdicts."""
    rows = [
        {
            "of the single verdicts": _judge_name(index),
            **{name: evaluation.get(key) for key, name in _HABITS.items()},
            **{f"{name}_ci95": evaluation.get(f"{key}_ci95") for key, name in _HABITS.items()},
        }
        for index, evaluation in evaluations.items()
    ]
    return _across(rows)


def _across(rows: Sequence[dict[str, Any]]) -> Safe:
    """A table with a column for each row: for few rows of many values."""
    header, body = cells(rows)
    first, *others = [list(line) for line in zip(header, *body, strict=True)]
    return table(first, others)


def _difference(
    evaluated: list[IterationDir], evaluations: dict[int, dict[str, Any]], config: dict[str, Any]
) -> Safe:
    title = "Does the last judge differ from the seed?"
    if len(evaluated) < 2 or evaluated[0].index != 0:
        return section(title, note(_NOT_YET))
    seed, last = evaluated[0], evaluated[-1]
    bootstrap = config.get("evaluate", {}).get("bootstrap", EvaluateKnobs().bootstrap)
    try:
        difference = compare(
            seed.heldout.prompts.rows(),
            read_verdicts(seed.heldout.judgments),
            read_verdicts(last.heldout.judgments),
            bootstrap=bootstrap,
        )
    except WorkError as error:
        return section(title, note(f"The two were not judged on the same prompts: {error}"))
    body: list[list[Child]] = []
    for key, name in _measures(evaluations[last.index]).items():
        if difference[f"{key}_ci95"] is None:
            return section(title, note("Of no pair were both judges asked."))
        low, high = difference[f"{key}_ci95"]
        told = "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
        body.append(
            [
                name,
                number(evaluations[seed.index].get(key)),
                number(evaluations[last.index].get(key)),
                f"{difference[key]:+.3f} [{low:+.3f}, {high:+.3f}]",
                told,
            ]
        )
    header = ["", "seed", _judge_name(last.index), "difference", "reading"]
    remark = "Both judges on the same pairs, resampled together; an interval with 0 shows nothing."
    return section(title, table(header, body), note(remark))


# ---------------------------------------------------------------------------------------------
# The funnel


def _funnel(counts: dict[str, Any]) -> Safe:
    steps = pool_steps(counts)
    if not steps:
        return section("The funnel", note(_NOT_YET))
    return section(
        "The funnel",
        _bars("instructions", steps),
        note(
            "Beside a step: what did not reach it, and why. The selection's reasons are of the "
            "whole pool, rows without a category among them."
        ),
        _splits(counts["selection"]["kept"], counts["pairs"]),
        _sums(counts),
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


def _sums(counts: dict[str, Any]) -> Safe:
    wrong = check_sums(counts)
    if not wrong:
        return note("Every count that can be checked by now adds up with its parts.")
    head = tag("p", "Counts that do not add up; the run's files were changed by something else:")
    return tag("div", head, tag("ul", [tag("li", each) for each in wrong]), class_="warn")


def _judgments_drawn(counts: dict[str, Any]) -> Safe:
    title = "Judgments drawn for training"
    if not counts["iterations"]:
        return section(title, note(_NOT_YET))
    legend = tag(
        "p",
        tag("i", class_="key own"), "verdict by itself",
        tag("i", class_="key force"), "by force",
        tag("i", class_="key none"), "none",
        class_="note",
    )  # fmt: skip
    return section(title, legend, [_drawn(each) for each in counts["iterations"]])


def _drawn(each: dict[str, Any]) -> list[Safe]:
    total = each["judgments"]
    shares = [("own", each["parsed"]), ("force", each["forced"]), ("none", each["unparsed"])]
    split = [tag("i", class_=k, style=f"width:{100 * n / max(total, 1):.2f}%") for k, n in shares]
    kept = each["kept"]
    waves = ", ".join(f"{number(n)} after {k}" for k, n in each["waves"].items())
    told = (
        f"{number(total)} judgments: {number(each['parsed'])} with a verdict of their own, "
        f"{number(each['forced'])} forced, {number(each['unparsed'])} without; "
        f"{number(each['correct'])} correct. Prompts by waves drawn: {waves or 'none yet'}."
    )
    if each["complete"]:
        told += f" Kept: {number(kept['A'])} A, {number(kept['B'])} B."
    if each["failures"]:
        told += f" Why no verdict of their own: {reasons(each['failures'])}."
    if each["dpo"] and each["dpo"]["judgments"]:
        told += f" For DPO, {number(each['dpo']['judgments'])} by the judge that SFT gave."
    return [
        tag("h3", _judge_name(each["iteration"])),
        tag("div", split, class_="bar"),
        note(told),
        _bars("prompts", iteration_steps(each)),
    ]


# ---------------------------------------------------------------------------------------------
# Tables, training, reading


def _tables(run: RunDir, counts: dict[str, Any]) -> Safe:
    title = "Work and result"
    iterations, stages = iteration_table(run, counts), stage_table(run)
    parts: list[Child] = []
    if iterations:
        parts.append(_across(iterations))
    trained = finetuning_table(run)
    if trained:
        parts += [tag("h3", "By stage of fine-tuning"), _across(trained)]
        parts.append(note("Of DPO, examples are pairs of a correct judgment and a failed one: its "
                          "verdict was incorrect, or none could be parsed."))  # fmt: skip
    if stages:
        parts += [tag("h3", "By stage"), table(*cells(stages))]
        parts.append(note("Work whose results were written, also where a changed knob threw "
                          "them away later; seconds are summed over processes, FLOPs are the "
                          "model's."))  # fmt: skip
    return section(title, *(parts or [note(_NOT_YET)]))


def _loss(run: RunDir) -> Safe:
    parts: list[Child] = []
    stages = finetuning_stages(run)
    for iteration, stage, out in stages:
        curve = files.read_json(out.loss_curve)
        steps = [(each["step"], each["loss"]) for each in curve["steps"]]
        checks = [
            (each["step"], each["accuracy"])
            for each in curve["validations"]
            if each["accuracy"] is not None
        ]
        if steps or checks:
            name = _judge_name(iteration.index)
            several = len([each for each, *_ in stages if each.index == iteration.index]) > 1
            parts.append(tag("h3", f"{name}: {stage}" if several or stage != "sft" else name))
            parts.append(loss_plot(steps, checks, curve.get("best_step")))
    return section("Fine-tuning", *(parts or [note(_NOT_YET)]))


def _to_read(chosen: list[Example]) -> Safe:
    title = "Judgments to read"
    if not chosen:
        return section(title, note(_NOT_YET))
    remark = (
        "Held-out pairs drawn by their id: some that the last judge judges better than the first, "
        "some worse, the rest the same. Which answer is better was constructed, not checked."
    )
    return section(title, note(remark), [_example(each) for each in chosen])


def _example(example: Example) -> Safe:
    pair, change = example.pair, example.last_right - example.first_right
    kind = "good" if change > 0 else "bad" if change < 0 else ""
    told = f"{example.first_right} of 2 right, then {example.last_right}"
    if not change:
        told = f"{example.last_right} of 2 right"
    asked = [
        [tag("h4", f"Instruction ({turn['role']})"), words(turn["content"])]
        for turn in pair.messages
    ]
    told_by = "by construction" if pair.source == "constructed" else "by the label"
    answers = tag(
        "div",
        tag("div", tag("h4", f"Better answer, {told_by}"), words(pair.chosen)),
        tag("div", tag("h4", "Worse answer"), words(pair.rejected)),
        class_="answers",
    )
    summary = tag(
        "summary",
        tag("span", told, class_=f"pill {kind}".rstrip()),
        line(pair.messages[-1]["content"]),
    )
    modified: Child = ""
    if pair.modified_instruction:
        head = tag("h4", "The worse answer was written for this instruction")
        modified = [head, words(pair.modified_instruction)]
    return tag("details", summary, *asked, answers, modified, [_view(v) for v in example.views])


def _view(view: View) -> list[Safe]:
    first = "better" if view.prompt.order == "ab" else "worse"
    head = f"With the {first} answer first: right is {view.prompt.label}"
    judged = [_said(index, said, view.prompt.label) for index, said in sorted(view.said.items())]
    return [tag("h4", head), *judged]


def _said(index: int, said: Said, label: str) -> Safe:
    right = said.verdict == label
    verdict = "no verdict" if said.verdict is None else f"verdict {said.verdict}"
    told = f"{verdict}, {'right' if right else 'wrong'}"
    if said.forced:
        told += ", forced"
    if said.failure is not None:
        told += f" ({said.failure.replace('_', ' ')})"
    pill = tag("span", line(told), class_="pill good" if right else "pill bad")
    return tag("details", tag("summary", pill, _judge_name(index)), words(said.text))


def _config(run: RunDir) -> Safe:
    if not run.config.exists():
        return section("Config", note(_NOT_YET))
    text = tag("pre", run.config.read_text(encoding="utf-8"), class_="words code")
    return section("Config", tag("details", tag("summary", "config.yaml as resolved"), text))
