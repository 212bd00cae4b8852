"""How many rows went into each step of a run, how many came out, and where did the others go?

Rows are counted in the tables, never from a log, which may speak of an attempt that was killed.
Every count must add up with others; `check_sums` says which do not. Only ids are kept in memory, no
texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ste_jax.config.schema import AnnotateKnobs, FinetuneKnobs, JudgeKnobs
from ste_jax.reporting.columns import read_columns, read_prompts
from ste_jax.reporting.phases import Counts, Equation, Reports, Step, report_of
from ste_jax.run.layout import IterationDir, RunDir
from ste_jax.run.tables import Table
from ste_jax.system import files
from ste_jax.tasks import Question, Task, task_named


def funnel(run: RunDir, reports: Reports) -> dict[str, Any]:
    """Count the rows of every step of a run; a step that is not done yet has `complete` false.

    Returns, ready for JSON:
      intake: {read, rejected, duplicates, kept} of the pool, and {filtered, not_sampled} if there
        are such rows; null before intake is done.
      pool: {rows, complete}
      labels: {with_category, without_category, failures: {kind: n}, complete}
      selection: {fates: {fate: n}, kept: {split: {category: n}}, selected, complete}
      pairs: {kept, by_split: {split: n}, dropped: {reason: n}, complete}
      iterations: one per iteration from 1, see `_iteration`.
      evaluations: one per judge from the seed's 0: {iteration, prompts, orders, judgments, votes,
        complete}

    Raises:
      RequestError: not a run. WorkError: a damaged table.
    """
    splits, selection = _selection(run)
    begun, config, task = run.iterations(), read_config(run), task_of(run)
    asked, trained = config.get("annotate", {}), config.get("finetune", {})
    plain = {one.index: out for one, name, out in finetuned(run) if report_of(reports, name).plain}
    return {
        "intake": run.read_manifest().get("intake"),
        "pool": {"rows": count(run.pool), "complete": run.pool.complete()},
        "labels": _labels(run),
        "selection": selection,
        "pairs": _pairs(run, splits),
        "iterations": [
            _iteration(each, task, asked, plain.get(each.index))
            | {"phases": _phases(each, trained, reports)}
            for each in begun
            if each.index > 0
        ],
        "evaluations": [_evaluation(each, task) for each in begun],
    }


def read_config(run: RunDir) -> dict[str, Any]:
    """The run's resolved config; empty before there is one."""
    text = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    config: dict[str, Any] = yaml.safe_load(text) or {}
    return config


def task_of(run: RunDir) -> Task:
    """The task of the run's judges."""
    return task_named(read_config(run).get("judge", {}).get("task", JudgeKnobs().task))


def count(table: Table[Any]) -> int:
    """How many rows of a table there are so far."""
    return sum(1 for _ in read_columns(table, "id"))


def _counts(counter: Counter[Any]) -> Counts:
    """Counts ordered by name, so that the same rows give the same file."""
    return {str(key): counter[key] for key in sorted(counter, key=str)}


def _labels(run: RunDir) -> dict[str, Any]:
    rows = list(read_columns(run.labels, "category", "failure"))
    labelled = sum(category is not None for category, _ in rows)
    return {
        "with_category": labelled,
        "without_category": len(rows) - labelled,
        "failures": _counts(Counter(failure for _, failure in rows if failure is not None)),
        "complete": run.labels.complete(),
    }


def _selection(run: RunDir) -> tuple[dict[str, str], dict[str, Any]]:
    fates: Counter[str] = Counter()
    kept: dict[str, Counter[str]] = {}
    splits: dict[str, str] = {}
    for id, fate, category, split in read_columns(run.selection, "id", "fate", "category", "split"):
        fates[fate] += 1
        if fate == "kept":
            splits[id] = str(split)
            kept.setdefault(str(split), Counter())[str(category)] += 1
    return splits, {
        "fates": _counts(fates),
        "kept": {split: _counts(kept[split]) for split in sorted(kept)},
        "selected": count(run.selected),
        "complete": run.selection.complete() and run.selected.complete(),
    }


def _pairs(run: RunDir, splits: dict[str, str]) -> dict[str, Any]:
    of = Counter(splits.get(id, "unknown") for (id,) in read_columns(run.pairs, "instruction_id"))
    dropped = Counter(reason for (reason,) in read_columns(run.dropped_pairs, "reason"))
    return {
        "kept": of.total(),
        "by_split": _counts(of),
        "dropped": _counts(dropped),
        "complete": run.pairs.complete() and run.dropped_pairs.complete(),
    }


def phase_names(knobs: dict[str, Any]) -> Sequence[str]:
    """The names of a run's phases of fine-tuning; `knobs` are those of `finetune`."""
    return knobs.get("stages") or FinetuneKnobs().stages


def finetuned(run: RunDir) -> list[tuple[IterationDir, str, IterationDir]]:
    """The phases of fine-tuning that have a loss curve: for each the iteration, the phase's name,
    and the directory of its judge."""
    names = phase_names(read_config(run).get("finetune", {}))
    return [
        (iteration, name, out)
        for iteration in run.iterations()
        for name, out in iteration.places_of(names)
        if iteration.index and out.loss_curve.exists()
    ]


def _iteration(
    iteration: IterationDir, task: Task, asked: dict[str, Any], plain: IterationDir | None
) -> dict[str, Any]:
    """The counts of one iteration; `asked` are the knobs of `annotate`:

    prompts, with_correct: all of them, and those of questions that were answered rightly at least
      once;
    orders: how many prompts a pair gives; together: how many of them make a question;
    judgments = parsed (by the judge itself) + forced + unparsed (not even so); failures by kind,
      why the judge gave no verdict by itself; correct: those that make a right outcome;
    samples, waves: {samples drawn (waves begun): prompts};
    kept: {outcome: n} of the questions of training, as the table has it; curation: what the
      curation itself wrote, {kept: {outcome: n}, dropped: {reason: n}}, null before;
    too_long: training rows that did not fit the sequence length, null before the phase that learns
      them (which left its loss curve in `plain`);
    annotated, complete: whether the judgments, and the training table, are all there.
    """
    questions = task.questions(read_prompts(iteration.prompts))
    of = {prompt.id: each for each in questions for prompt in each.prompts}
    samples, judged = _judged(iteration, task, of)
    waves = tuple(asked.get("waves", AnnotateKnobs().waves))
    trained = dict(read_columns(iteration.training, "prompt_id", "label"))
    learnt = {of[id].id: of[id] for id in trained if id in of}
    kept = Counter(dict.fromkeys(task.decided, 0))
    kept.update(str(_outcome(task, each, trained)) for each in learnt.values())
    curation = iteration.curation
    asked_per_pair = 1 if asked.get("orders") == "one" else task.questions_per_pair
    curve = files.read_json(plain.loss_curve) if plain is not None else None
    return {
        "iteration": iteration.index,
        "prompts": len(of),
        "orders": asked_per_pair * task.prompts_per_question,
        "together": task.prompts_per_question,
        **judged,
        "samples": _tally(samples),
        "waves": _tally(Counter({id: _waves_of(n, waves) for id, n in samples.items()})),
        "kept": _counts(kept),
        "curation": files.read_json(curation) if curation.exists() else None,
        "too_long": len(curve.get("too_long", ())) if curve is not None else None,
        "annotated": iteration.prompts.complete() and iteration.judgments.complete(),
        "complete": iteration.training.complete() and curation.exists(),
    }


def _phases(
    iteration: IterationDir, knobs: dict[str, Any], reports: Reports
) -> dict[str, dict[str, Any]]:
    """The further counts of each phase of fine-tuning, by name; `knobs` are those of `finetune`."""
    of_phases = ((name, report_of(reports, name)) for name in phase_names(knobs))
    found = {name: report.counts(iteration, knobs) for name, report in of_phases}
    return {name: counts for name, counts in found.items() if counts is not None}


def _judged(
    iteration: IterationDir, task: Task, of: Mapping[str, Question]
) -> tuple[Counter[str], dict[str, Any]]:
    """How many samples were drawn of each prompt (0 included), and those counts of `_iteration`
    that concern judgments. `of` maps a prompt to its question; `strays` counts judgments of prompts
    that do not exist."""
    samples: Counter[str] = Counter(dict.fromkeys(of, 0))
    failures: Counter[str] = Counter()
    parsed = forced = unparsed = correct = 0
    with_correct: set[str] = set()
    waiting: dict[tuple[str, int], dict[str, str | None]] = {}
    columns = ("prompt_id", "sample", "verdict", "failure", "forced")
    rows = read_columns(iteration.judgments, *columns)
    for prompt_id, sample, verdict, failure, by_force in rows:
        samples[prompt_id] += 1
        parsed += failure is None
        forced += by_force and verdict is not None
        unparsed += verdict is None
        if failure is not None:
            failures[failure] += 1
        if prompt_id not in of:
            continue
        question = of[prompt_id]
        drawn = waiting.setdefault((question.id, sample), {})
        drawn[prompt_id] = verdict
        if len(drawn) == len(question.prompts):
            del waiting[question.id, sample]
            if _outcome(task, question, drawn) == task.answer(question):
                correct += len(drawn)
                with_correct |= drawn.keys()
    return samples, {
        "judgments": samples.total(),
        "strays": sum(id not in of for id in samples),
        "parsed": parsed,
        "forced": forced,
        "unparsed": unparsed,
        "failures": _counts(failures),
        "correct": correct,
        "with_correct": len(with_correct),
    }


def _outcome(task: Task, question: Question, verdicts: Mapping[str, str | None]) -> str | None:
    """The outcome of a question by the verdicts on its prompts."""
    return task.outcome(question, [verdicts.get(prompt.id) for prompt in question.prompts])


def _tally(per_prompt: Counter[str]) -> Counts:
    of = Counter(per_prompt.values())
    return {str(number): of[number] for number in sorted(of)}


def _waves_of(samples: int, waves: tuple[int, ...]) -> int:
    """How many waves it took to draw so many samples; the last size repeats."""
    begun = 0
    while samples > 0:
        samples -= waves[min(begun, len(waves) - 1)]
        begun += 1
    return begun


def _evaluation(iteration: IterationDir, task: Task) -> dict[str, Any]:
    prompts, judgments = iteration.heldout.prompts, iteration.heldout.judgments
    done = iteration.evaluation.exists()
    return {
        "iteration": iteration.index,
        "prompts": count(prompts),
        "orders": len(task.orders),
        "judgments": count(judgments),
        "votes": files.read_json(iteration.evaluation).get("votes") if done else None,
        "complete": done and prompts.complete() and judgments.complete(),
    }


# ---------------------------------------------------------------------------------------------
# The same counts as steps, for people


def pool_steps(funnel: dict[str, Any]) -> list[Step]:
    """The steps from the rows read to the pairs, as far as the run has come."""
    intake, labels, selection = funnel["intake"], funnel["labels"], funnel["selection"]
    pairs, taken_in = funnel["pairs"], funnel["pool"]["rows"]
    steps: list[Step] = []
    if intake is not None:
        steps.append(("read", intake["read"], {}))
        lost = {key: n for key, n in intake.items() if key not in ("read", "kept")}
        steps.append(("taken in", intake["kept"], lost))
    elif taken_in:
        steps.append(("taken in", taken_in, {}))
    if labels["with_category"] + labels["without_category"]:
        steps.append(("given a category", labels["with_category"], labels["failures"]))
    if selection["fates"]:
        lost = {fate: n for fate, n in selection["fates"].items() if fate != "kept"}
        steps.append(("selected", selection["selected"], lost))
    if pairs["kept"] + sum(pairs["dropped"].values()):
        steps.append(("made pairs", pairs["kept"], pairs["dropped"]))
    return steps


def iteration_steps(each: dict[str, Any], reports: Reports) -> list[Step]:
    """The steps from an iteration's prompts to the rows that were trained on."""
    steps: list[Step] = [
        ("prompts", each["prompts"], {}),
        ("with a correct judgment", each["with_correct"], {}),
    ]
    if each["complete"]:
        together = each["together"]
        kept = together * sum(each["kept"].values())
        dropped = {why: together * n for why, n in each["curation"]["dropped"].items()}
        steps.append(("kept for training", kept, dropped))
        if each["too_long"] is not None:
            lost = {"too_long": each["too_long"]}
            steps.append(("trained on", kept - each["too_long"], lost))
    for name, counts in each["phases"].items():
        steps += report_of(reports, name).steps(counts)
    return steps


def reasons(lost: Counts) -> str:
    """A text of how many rows were lost for which reason, the largest number first."""
    ordered = sorted(lost.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n:,} {reason.replace('_', ' ')[:80]}" for reason, n in ordered if n)


# ---------------------------------------------------------------------------------------------
# What must add up


def check_sums(funnel: dict[str, Any], reports: Reports) -> list[str]:
    """The equations between counts that do not hold, each as one sentence; none in a sound run.

    An equation is checked only when both its sides are complete.
    """
    return [
        f"{what}: {whole} is not {parts}"
        for what, whole, parts in _equations(funnel, reports)
        if whole != parts
    ]


def _equations(funnel: dict[str, Any], reports: Reports) -> Iterator[Equation]:
    intake, pool, labels = funnel["intake"], funnel["pool"], funnel["labels"]
    selection, pairs = funnel["selection"], funnel["pairs"]
    if intake is not None:
        parts = sum(n for key, n in intake.items() if key != "read")
        yield "rows read = rejected + duplicates + kept", intake["read"], parts
    if intake is not None and pool["complete"]:
        yield "rows kept at intake = rows of the pool", intake["kept"], pool["rows"]
    if pool["complete"] and labels["complete"]:
        both = labels["with_category"] + labels["without_category"]
        yield "rows of the pool = with + without a category", pool["rows"], both
    if pool["complete"] and selection["complete"]:
        yield "rows of the pool = sum of the fates", pool["rows"], sum(selection["fates"].values())
    if selection["complete"]:
        kept = selection["fates"].get("kept", 0)
        by_split = sum(sum(of.values()) for of in selection["kept"].values())
        yield "fate kept = kept by split and category", kept, by_split
        yield "fate kept = rows selected", kept, selection["selected"]
    if selection["complete"] and pairs["complete"]:
        parts = pairs["kept"] + sum(pairs["dropped"].values())
        yield "rows selected = pairs + dropped", selection["selected"], parts
        yield "pairs of no selected instruction = 0", pairs["by_split"].get("unknown", 0), 0
    for each in funnel["iterations"]:
        for what, whole, parts in _of_iteration(each, pairs, reports):
            yield f"iteration {each['iteration']}: {what}", whole, parts
    for each in funnel["evaluations"]:
        for what, whole, parts in _of_evaluation(each, pairs):
            yield f"evaluation {each['iteration']}: {what}", whole, parts


def _of_iteration(
    each: dict[str, Any], pairs: dict[str, Any], reports: Reports
) -> Iterator[Equation]:
    by_force = each["forced"] + each["unparsed"]
    yield "judgments = parsed + forced + unparsed", each["judgments"], each["parsed"] + by_force
    yield "failures by kind = forced + unparsed", sum(each["failures"].values()), by_force
    if each["annotated"]:
        yield "prompts without a judgment = 0", each["samples"].get("0", 0), 0
        yield "judgments of no prompt = 0", each["strays"], 0
    if each["annotated"] and pairs["complete"]:
        train_pairs, orders = pairs["by_split"].get("train", 0), each["orders"]
        yield f"prompts = {orders} x training pairs", each["prompts"], orders * train_pairs
    if each["complete"]:
        kept = each["curation"]["kept"]
        for outcome, rows in each["kept"].items():
            yield f"kept {outcome} = its training rows", kept.get(outcome, 0), rows
    if each["annotated"] and each["complete"]:
        total = sum(each["curation"]["kept"].values())
        parts = total + sum(each["curation"]["dropped"].values())
        together = each["together"]
        yield "prompts = kept + dropped", each["prompts"], together * parts
        without = max(0, together * total - each["with_correct"])
        yield "kept without a correct judgment = 0", without, 0
    for name, counts in each["phases"].items() if each["annotated"] else ():
        yield from report_of(reports, name).equations(counts, each["prompts"])


def _of_evaluation(each: dict[str, Any], pairs: dict[str, Any]) -> Iterator[Equation]:
    if each["complete"] and pairs["complete"]:
        heldout = pairs["by_split"].get("heldout", 0)
        orders = each["orders"]
        yield f"prompts = {orders} x held-out pairs", each["prompts"], orders * heldout
    if each["complete"]:
        yield "judgments = prompts x votes", each["judgments"], each["prompts"] * each["votes"]
