"""Which part of the recipe makes the judge better, and what would have made it seem so?

`python benchmarks/pico_ablation.py` trains pico's judge under variations of the recipe, each under
run seeds 1, 2 and 3, all from the same instructions and pairs of that seed. It writes a Markdown
table and a page with a plot. Killed, it goes on; finished, it only prints.

A judgment whatever its verdict is the first that was sampled (N = 1), so `no rejection sampling` is
to be held against `N = 1`, which draws as many, and against `the recipe on as few`, which learns
from as many in the first iteration. In later ones the judges keep what they come to, up to that
number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.cells import (
    DEMO,
    SETS,
    Cell,
    both_parsed,
    evaluations,
    hits,
    kept,
    markdown,
    pooled,
    run_cell,
    shuffle_labels,
    start,
)
from ste_jax.reporting.page import note, page, section, tag
from ste_jax.reporting.plots import agreement_plot, share_of
from ste_jax.rundir import RunDir

SHUFFLED = Cell(name="shuffled", told="labels shuffled", prepare=shuffle_labels)
OTHERS = (
    Cell(name="previous", told="from the last judge", overrides=("finetune.start_from=previous",)),
    Cell(name="one-order", told="one order only", overrides=("annotate.orders=one",)),
    Cell(name="n-1", told="N = 1", overrides=("annotate.samples=1",)),
    Cell(name="n-4", told="N = 4", overrides=("annotate.samples=4",)),
)


CONTROLS = (SHUFFLED.told, "no rejection sampling")


def any_verdict(limit: int) -> Cell:
    """No more than the recipe keeps; balanced, so where a letter is rare it is fewer."""
    return Cell(
        name="any-verdict",
        told=CONTROLS[1],
        overrides=("curate.verdicts=any", "annotate.samples=1", f"curate.limit={limit}"),
    )


def as_few(limit: int) -> Cell:
    """The recipe on as few judgments as are left without rejection."""
    overrides = (f"curate.limit={limit}",)
    return Cell(name="as-few", told="the recipe on as few", overrides=overrides)


def main() -> None:
    """Run every cell, then write what was found."""
    given = start("The recipe's parts, one by one, on pico.")
    runs: dict[str, list[RunDir]] = {}
    for seed in given.seeds:
        home = given.out / f"seed-{seed}"

        def made(cell: Cell, seed: int = seed, home: Path = home) -> RunDir:
            base = None if cell is DEMO else home / DEMO.name
            run = run_cell(cell, given.config, seed, home / cell.name, base)
            runs.setdefault(cell.told, []).append(run)
            return run

        recipe = made(DEMO)
        made(SHUFFLED)
        loose = made(any_verdict(kept(recipe)[0]))
        made(as_few(kept(loose)[0]))
        for cell in OTHERS:
            made(cell)
    write(given.out, runs)


def write(out: Path, runs: dict[str, list[RunDir]]) -> None:
    """The table, on the terminal and in a file, the same as JSON, and the page."""
    counted = {told: hits(of, SETS) for told, of in runs.items()}
    curves = {told: each.accuracies() for told, each in counted.items()}
    whole = counted[DEMO.told]
    table = [_row("the seed", runs[DEMO.told], 0)]
    for told, of in runs.items():
        row = _row(told, of, -1)
        row["kept"] = " / ".join(f"{each:.0f}" for each in np.mean([kept(run) for run in of], 0))
        gain = counted[told].share_of_gain(whole)
        row[_GAIN] = 100 * gain["share"]
        row[f"{_GAIN}_ci95"] = [100 * end for end in gain["share_ci95"]]
        table.append(row)
    text = "\n".join([markdown(table), "", *_remarks(runs), ""])
    print(text)
    (out / "ablation.md").write_text(text)
    (out / "ablation.json").write_text(json.dumps(curves, indent=2) + "\n")
    judges = ["seed", *(f"iteration {n}" for n in range(1, len(curves[DEMO.told])))]
    series = {told: [share_of(each, "accuracy") for each in of] for told, of in curves.items()}
    plotted = [
        section(told, agreement_plot(judges, {DEMO.told: series[DEMO.told], told: of}))
        for told, of in series.items()
        if told != DEMO.told
    ]
    remark = note(
        f"Accuracy of the single verdict on the labelled pairs, the mean of "
        f"{len(runs[DEMO.told])} run seeds; whiskers are 95% intervals of that mean, resampled by "
        "pair."
    )
    title = "Which part of the recipe makes the judge better?"
    (out / "ablation.html").write_text(page(title, tag("h1", title), remark, *plotted))


_GAIN = "% of the recipe's gain"


def _row(told: str, runs: list[RunDir], judge: int) -> dict[str, Any]:
    """One judge of some runs: intervals where pairs are resampled, else means over the runs."""
    judged = [evaluations(run)[judge] for run in runs]
    row: dict[str, Any] = {"cell": told, "kept": "", _GAIN: ""}
    for title, names in (("both sets", SETS), *((one, [one]) for one in SETS)):
        found = hits(runs, names).accuracies()[judge]
        row |= {title: found["accuracy"], f"{title}_ci95": found["accuracy_ci95"]}
    for title, measure in (
        ("in both orders", "consistent_accuracy"),
        ("every step right", "sound"),
        ("unparsed", "unparsed"),
    ):
        row[title] = float(np.mean([pooled(each, measure) for each in judged]))
    return row


def _remarks(runs: dict[str, list[RunDir]]) -> Iterator[str]:
    """The gains where form plays no part, and whether the controls stayed as low as claimed."""
    for told, of in runs.items():
        found = np.array([both_parsed(run, name) for run in of for name in SETS])
        before, after = found[:, 0] @ found[:, 1:] / found[:, 0].sum()
        gain = f"{before:.3f} -> {after:.3f}"
        yield f"- {told}: on prompts that seed and last judge both parsed {gain}"
    whole = hits(runs[DEMO.told], SETS)
    for told in CONTROLS:
        share = hits(runs[told], SETS).share_of_gain(whole)["share"]
        holds = "holds" if share < 0.25 else "DOES NOT HOLD"
        yield f"- {holds}: {told} reaches less than a quarter of the recipe's gain ({share:.2f})"


if __name__ == "__main__":
    main()
