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

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.cells import (
    DEMO,
    SETS,
    Cell,
    accuracy_curve,
    markdown,
    parser,
    run_cell,
    shuffle_labels,
)
from ste_jax import compilation_cache, files
from ste_jax.reporting.page import note, page, section, tag
from ste_jax.reporting.plots import agreement_plot, share_of
from ste_jax.rundir import RunDir


def cells(kept: int) -> list[Cell]:
    """The variations; `kept` judgments is what the recipe keeps in its first iteration."""
    any_verdict = ("curate.verdicts=any", "annotate.samples=1", f"curate.limit={kept}")
    return [
        Cell(name="shuffled", told="labels shuffled", prepare=shuffle_labels),
        Cell(name="any-verdict", told="no rejection sampling", overrides=any_verdict),
        Cell(name="previous", told="from the last judge",
             overrides=("finetune.start_from=previous",)),
        Cell(name="one-order", told="one order only", overrides=("annotate.orders=one",)),
        Cell(name="n-1", told="N = 1", overrides=("annotate.samples=1",)),
        Cell(name="n-4", told="N = 4", overrides=("annotate.samples=4",)),
    ]  # fmt: skip


def main() -> None:
    """Run every cell, then write what was found."""
    options = parser("The recipe's parts, one by one, on pico.")
    options.add_argument("--only", nargs="+", default=[], metavar="CELL", help="names of cells")
    given = options.parse_args()
    compilation_cache.enable()
    runs: dict[str, list[RunDir]] = {}
    names = {DEMO.name: DEMO.told}
    for seed in given.seeds:
        home = given.out / f"seed-{seed}"
        recipe = run_cell(DEMO, given.config, seed, home / DEMO.name)
        runs.setdefault(DEMO.name, []).append(recipe)
        kept = sum(files.read_json(recipe.iteration(1).curation)["kept"].values())
        for cell in cells(kept):
            if given.only and cell.name not in given.only:
                continue
            names[cell.name] = cell.told
            made = run_cell(cell, given.config, seed, home / cell.name, base=home / DEMO.name)
            runs.setdefault(cell.name, []).append(made)
    write(given.out, runs, names)


def write(out: Path, runs: dict[str, list[RunDir]], names: dict[str, str]) -> None:
    """The table, on the terminal and in a file, and the page."""
    whole = {name: accuracy_curve(of, SETS) for name, of in runs.items()}
    gain = whole[DEMO.name][-1]["accuracy"] - whole[DEMO.name][0]["accuracy"]
    table = []
    for name, of in runs.items():
        first, last = whole[name][0], whole[name][-1]
        row: dict[str, Any] = {"cell": names[name]}
        for told, measured in (("seed", first), ("last judge", last)):
            row |= {told: measured["accuracy"], f"{told}_ci95": measured["accuracy_ci95"]}
        gained = last["accuracy"] - first["accuracy"]
        row["of the recipe's gain"] = f"{gained / gain:+.0%}" if gain else None
        for one in SETS:
            measured = accuracy_curve(of, [one])[-1]
            row |= {f"last, {one}": measured["accuracy"],
                    f"last, {one}_ci95": measured["accuracy_ci95"]}  # fmt: skip
        table.append(row)
    seeds = len(runs[DEMO.name])
    text = markdown(table)
    print(text)
    (out / "ablation.md").write_text(text + "\n")
    judges = ["seed", *(f"iteration {n}" for n in range(1, len(whole[DEMO.name])))]
    series = {
        names[name]: [share_of(each, "accuracy") for each in of] for name, of in whole.items()
    }
    plotted = [
        section(told, agreement_plot(judges, {DEMO.told: series[DEMO.told], told: of}))
        for told, of in series.items()
        if told != DEMO.told
    ]
    remark = note(
        f"Accuracy of the single verdict on the labelled pairs, the mean of {seeds} run seeds; "
        "whiskers are 95% intervals of that mean, resampled by pair."
    )
    title = "Which part of the recipe makes the judge better?"
    (out / "ablation.html").write_text(page(title, tag("h1", title), remark, *plotted))
    (out / "ablation.json").write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
