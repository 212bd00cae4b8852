"""Which part of the recipe makes the judge better, and what would have made it seem so?

`python benchmarks/pico_ablation.py` trains pico's judge under variations of the recipe, each under
run seeds 1, 2 and 3, all from the same instructions and pairs of that seed. It writes a Markdown
table and a page with a plot. Killed, it goes on; finished, it only prints.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.cells import (
    DEMO,
    SETS,
    Cell,
    hits,
    kept,
    markdown,
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


def any_verdict(limit: int) -> Cell:
    """No more than the recipe keeps; balanced, so where a letter is rare it is fewer."""
    return Cell(
        name="any-verdict",
        told="no rejection sampling",
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
    table = []
    for told, of in runs.items():
        gain = counted[told].share_of_gain(counted[DEMO.told])
        row: dict[str, Any] = {
            "cell": told,
            "kept": " / ".join(f"{each:.0f}" for each in np.mean([kept(run) for run in of], 0)),
            **_named("seed", curves[told][0], "accuracy"),
            **_named("last judge", curves[told][-1], "accuracy"),
            **_named("of the recipe's gain", gain, "share"),
        }
        for one in SETS:
            row |= _named(f"last, {one}", hits(of, [one]).accuracies()[-1], "accuracy")
        table.append(row)
    text = markdown(table)
    print(text)
    (out / "ablation.md").write_text(text + "\n")
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


def _named(name: str, measured: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: measured[key], f"{name}_ci95": measured[f"{key}_ci95"]}


if __name__ == "__main__":
    main()
