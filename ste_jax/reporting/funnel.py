"""How many rows went into each step of a run, how many came out, and where did the others go?

Counted from the tables alone, never from a log: what a log says may be of an attempt that was
killed. Every count has a partner that it must add up with; `check_sums` says which do not. Memory
is bounded by ids, not by texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml

from ste_jax.config.schema import AnnotateKnobs
from ste_jax.reporting.columns import read_columns
from ste_jax.run.layout import IterationDir, RunDir, Table
from ste_jax.system import files

Counts = dict[str, int]
Step = tuple[str, int, Counts]
"""A step's name, the rows that passed it, and how many did not for which reason."""


def funnel(run: RunDir) -> dict[str, Any]:
    """Count every step of a run, as far as it has come (then `complete` of a step is false).

    Returns, ready for JSON:
      intake: {read, rejected, duplicates, kept} as the pool was taken in, and where there are such
        rows {filtered, not_sampled}; null before.
      pool: {rows, complete}
      labels: {with_category, without_category, failures: {kind: n}, complete}
      selection: {fates: {fate: n}, kept: {split: {category: n}}, selected, complete}
      pairs: {kept, by_split: {split: n}, dropped: {reason: n}, complete}
      iterations: one per iteration from 1, see `_iteration`.
      evaluations: one per judge from the seed's 0: {iteration, prompts, judgments, votes, complete}

    Raises:
      RequestError: not a run. WorkError: a damaged table.
    """
    splits, selection = _selection(run)
    begun, config = run.iterations(), read_config(run)
    asked, trained = config.get("annotate", {}), config.get("finetune", {})
    sft = {one.index: out for one, name, out in finetuning_stages(run) if name == "sft"}
    return {
        "intake": run.read_manifest().get("intake"),
        "pool": {"rows": count(run.pool), "complete": run.pool.complete()},
        "labels": _labels(run),
        "selection": selection,
        "pairs": _pairs(run, splits),
        "iterations": [
            _iteration(each, asked, trained, sft.get(each.index))
            for each in begun
            if each.index > 0
        ],
        "evaluations": [_evaluation(each) for each in begun],
    }


def read_config(run: RunDir) -> dict[str, Any]:
    """The run's config as it was resolved; empty before."""
    text = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    config: dict[str, Any] = yaml.safe_load(text) or {}
    return config


def count(table: Table[Any]) -> int:
    """Rows of a table that are there."""
    return sum(1 for _ in read_columns(table, "id"))


def _counts(counter: Counter[Any]) -> Counts:
    """By name, so that the same rows give the same file."""
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


def finetuning_stages(run: RunDir) -> list[tuple[IterationDir, str, IterationDir]]:
    """The stages of fine-tuning whose loss curve is there: the iteration, the stage's name, and
    where its judge lies."""
    stages = read_config(run).get("finetune", {}).get("stages", ["sft"])
    return [
        (iteration, name, out)
        for iteration in run.iterations()
        for name, out in iteration.places_of(stages)
        if iteration.index and out.loss_curve.exists()
    ]


def _iteration(
    iteration: IterationDir,
    asked: dict[str, Any],
    knobs: dict[str, Any],
    sft: IterationDir | None,
) -> dict[str, Any]:
    """One iteration's counts, of which `asked` are the knobs of `annotate`, `knobs` those of
    `finetune`:

    prompts, with_correct: all of them, and those with at least one correct judgment;
    orders: how many prompts a pair gives;
    judgments = parsed (by the judge itself) + forced + unparsed (not even so); failures by kind,
      why the judge gave no verdict by itself; correct: verdict equal to the label;
    dpo: of the second stage, see `_preferred`; null where there is none, or not yet;
    samples, waves: {samples drawn (waves begun): prompts};
    kept: {letter: n} of training, as the table has it; curation: what the curation itself wrote,
      {kept: {letter: n}, dropped: {reason: n}}, null before;
    too_long: training rows that did not fit the sequence length, null before SFT (which left its
      loss curve in `sft`);
    annotated, complete: whether the judgments, and the training table, are all there.
    """
    labels = dict(read_columns(iteration.prompts, "id", "label"))
    samples: Counter[str] = Counter(dict.fromkeys(labels, 0))
    failures: Counter[str] = Counter()
    parsed = forced = unparsed = correct = 0
    with_correct: set[str] = set()
    columns = ("prompt_id", "verdict", "failure", "forced")
    for prompt_id, verdict, failure, by_force in read_columns(iteration.judgments, *columns):
        samples[prompt_id] += 1
        parsed += failure is None
        forced += by_force and verdict is not None
        unparsed += verdict is None
        if failure is not None:
            failures[failure] += 1
        if verdict is not None and verdict == labels.get(prompt_id):
            correct += 1
            with_correct.add(prompt_id)
    waves = tuple(asked.get("waves", AnnotateKnobs().waves))
    letters = Counter({"A": 0, "B": 0})
    letters.update(letter for (letter,) in read_columns(iteration.training, "label"))
    curation = iteration.curation
    curve = files.read_json(sft.loss_curve) if sft is not None else None
    return {
        "iteration": iteration.index,
        "prompts": len(labels),
        "orders": 1 if asked.get("orders") == "one" else 2,
        "judgments": samples.total(),
        "strays": sum(id not in labels for id in samples),
        "parsed": parsed,
        "forced": forced,
        "unparsed": unparsed,
        "failures": _counts(failures),
        "correct": correct,
        "with_correct": len(with_correct),
        "samples": _tally(samples),
        "waves": _tally(Counter({id: _waves_of(n, waves) for id, n in samples.items()})),
        "kept": _counts(letters),
        "curation": files.read_json(curation) if curation.exists() else None,
        "too_long": len(curve.get("too_long", ())) if curve is not None else None,
        "dpo": _preferred(iteration, knobs) if "dpo" in knobs.get("stages", ()) else None,
        "annotated": iteration.prompts.complete() and iteration.judgments.complete(),
        "complete": iteration.training.complete() and curation.exists(),
    }


def _preferred(iteration: IterationDir, knobs: dict[str, Any]) -> dict[str, Any]:
    """What DPO has to learn from, of which `knobs` are those of `finetune`:

    judgments, more_judgments: drawn for it alone, in none of the iteration's other counts;
    paired, pairs: prompts of which there are pairs of judgments, and these, as the table has them;
    counts: what the choice itself wrote, {kept: {letter: pairs}, prompts,
      prompts_dropped: {reason: n}, ..}; dropped: its `prompts_dropped`, empty before;
    complete: whether the table and the counts are there.
    """
    own = knobs.get("dpo", {}).get("judgments") == "sft"
    paired = [prompt_id for (prompt_id,) in read_columns(iteration.preferences, "prompt_id")]
    chosen = files.read_json(iteration.preferring) if iteration.preferring.exists() else None
    return {
        "judgments": count(iteration.dpo_judgments) if own else 0,
        "more_judgments": count(iteration.more_judgments),
        "paired": len(set(paired)),
        "pairs": len(paired),
        "counts": chosen,
        "dropped": (chosen or {}).get("prompts_dropped", {}),
        "complete": iteration.preferences.complete() and chosen is not None,
    }


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


def _evaluation(iteration: IterationDir) -> dict[str, Any]:
    prompts, judgments = iteration.heldout.prompts, iteration.heldout.judgments
    done = iteration.evaluation.exists()
    return {
        "iteration": iteration.index,
        "prompts": count(prompts),
        "judgments": count(judgments),
        "votes": files.read_json(iteration.evaluation).get("votes") if done else None,
        "complete": done and prompts.complete() and judgments.complete(),
    }


# ---------------------------------------------------------------------------------------------
# As steps, for people


def pool_steps(funnel: dict[str, Any]) -> list[Step]:
    """From what was read to the pairs, as far as the run has come."""
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


def iteration_steps(each: dict[str, Any]) -> list[Step]:
    """From an iteration's prompts to what was trained on."""
    steps: list[Step] = [
        ("prompts", each["prompts"], {}),
        ("with a correct judgment", each["with_correct"], {}),
    ]
    if each["complete"]:
        kept = sum(each["kept"].values())
        steps.append(("kept for training", kept, each["curation"]["dropped"]))
        if each["too_long"] is not None:
            lost = {"too_long": each["too_long"]}
            steps.append(("trained on", kept - each["too_long"], lost))
    if each["dpo"] is not None and each["dpo"]["complete"]:
        steps.append(("with pairs for DPO", each["dpo"]["paired"], each["dpo"]["dropped"]))
    return steps


def reasons(lost: Counts) -> str:
    """How many for which reason, the largest first."""
    ordered = sorted(lost.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n:,} {reason.replace('_', ' ')[:80]}" for reason, n in ordered if n)


# ---------------------------------------------------------------------------------------------
# What must add up


def check_sums(funnel: dict[str, Any]) -> list[str]:
    """The equations between counts that do not hold, each as one sentence; none in a sound run.

    An equation is looked at once both its sides are complete.
    """
    return [
        f"{what}: {whole} is not {parts}"
        for what, whole, parts in _equations(funnel)
        if whole != parts
    ]


Equation = tuple[str, int, int]


def _equations(funnel: dict[str, Any]) -> Iterator[Equation]:
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
        for what, whole, parts in _of_iteration(each, pairs):
            yield f"iteration {each['iteration']}: {what}", whole, parts
    for each in funnel["evaluations"]:
        for what, whole, parts in _of_evaluation(each, pairs):
            yield f"evaluation {each['iteration']}: {what}", whole, parts


def _of_iteration(each: dict[str, Any], pairs: dict[str, Any]) -> Iterator[Equation]:
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
        for letter in ("A", "B"):
            yield f"kept {letter} = its training rows", kept.get(letter, 0), each["kept"][letter]
    if each["annotated"] and each["complete"]:
        total = sum(each["curation"]["kept"].values())
        parts = total + sum(each["curation"]["dropped"].values())
        yield "prompts = kept + dropped", each["prompts"], parts
        yield "kept without a correct judgment = 0", max(0, total - each["with_correct"]), 0
    dpo = each["dpo"]
    if each["annotated"] and dpo is not None and dpo["complete"]:
        parts = dpo["paired"] + sum(dpo["dropped"].values())
        yield "prompts = with pairs for DPO + without", each["prompts"], parts
        yield "pairs kept = rows of preferences", sum(dpo["counts"]["kept"].values()), dpo["pairs"]


def _of_evaluation(each: dict[str, Any], pairs: dict[str, Any]) -> Iterator[Equation]:
    if each["complete"] and pairs["complete"]:
        heldout = pairs["by_split"].get("heldout", 0)
        yield "prompts = 2 x held-out pairs", each["prompts"], 2 * heldout
    if each["complete"]:
        yield "judgments = prompts x votes", each["judgments"], each["prompts"] * each["votes"]
