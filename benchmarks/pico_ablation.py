"""Which part of the recipe makes the judge better, and what would have made it seem so?

`python benchmarks/pico_ablation.py` trains pico's judge under variations of the recipe, each under
run seeds 1, 2 and 3, all from the same instructions and pairs of that seed. It writes a Markdown
table and a page with a plot. Killed, it goes on; finished, it only prints.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.cells import Cell, markdown, run_cell, shuffle_labels, single_verdicts
from ste_jax import compilation_cache, files
from ste_jax.reporting.page import note, page, section, tag
from ste_jax.reporting.plots import Share, agreement_plot
from ste_jax.rundir import RunDir

SETS = ("same-task", "other-task")
RESAMPLES = 2000

RECIPE = Cell(name="demo", told="the recipe")


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


def curve(runs: list[RunDir], names: tuple[str, ...]) -> list[Share]:
    """Accuracy of each iteration's judge on some sets, the mean over runs. The interval is of the
    mean over the same pairs, resampled together for all runs."""
    draw = np.random.default_rng(0)
    right = np.concatenate(
        [np.stack([single_verdicts(run, name) for run in runs]) for name in names], axis=2
    ).mean(axis=0)  # [iterations, pairs]
    picked = draw.integers(0, right.shape[1], (RESAMPLES, right.shape[1]))
    means = right[:, picked].mean(axis=2)
    low, high = np.quantile(means, (0.025, 0.975), axis=1)
    return [
        Share(float(each.mean()), (float(low[index]), float(high[index])))
        for index, each in enumerate(right)
    ]


def told(share: Share) -> str:
    """A share with its interval."""
    assert share.interval is not None
    return f"{share.value:.3f} [{share.interval[0]:.3f}, {share.interval[1]:.3f}]"


def main() -> None:
    """Run every cell, then write what was found."""
    parser = argparse.ArgumentParser(description="The recipe's parts, one by one, on pico.")
    parser.add_argument("--config", default="configs/pico.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/pico-seeds"), metavar="DIR",
                        help="that of pico_seeds.py, whose runs are shared")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL", help="names of cells")
    given = parser.parse_args()
    compilation_cache.enable()
    runs: dict[str, list[RunDir]] = {}
    names = {RECIPE.name: RECIPE.told}
    for seed in given.seeds:
        home = given.out / f"seed-{seed}"
        recipe = run_cell(RECIPE, given.config, seed, home / "demo")
        runs.setdefault(RECIPE.name, []).append(recipe)
        kept = sum(files.read_json(recipe.iteration(1).curation)["kept"].values())
        for cell in cells(kept):
            if given.only and cell.name not in given.only:
                continue
            names[cell.name] = cell.told
            made = run_cell(cell, given.config, seed, home / cell.name, base=home / "demo")
            runs.setdefault(cell.name, []).append(made)
    write(given.out, runs, names)


def write(out: Path, runs: dict[str, list[RunDir]], names: dict[str, str]) -> None:
    """The table, on the terminal and in a file, and the page."""
    table, series = [], {}
    whole = {name: curve(of, SETS) for name, of in runs.items()}
    gain = whole[RECIPE.name][-1].value - whole[RECIPE.name][0].value
    for name, of in runs.items():
        both = whole[name]
        series[names[name]] = both
        table.append(
            [
                names[name],
                told(both[0]),
                told(both[-1]),
                f"{(both[-1].value - both[0].value) / gain:+.0%}",
                *(told(curve(of, (each,))[-1]) for each in SETS),
            ]
        )
    seeds = len(runs[RECIPE.name])
    header = ["", "seed", "last judge", "of the recipe's gain", *(f"last, {s}" for s in SETS)]
    text = markdown(header, table)
    print(text)
    (out / "ablation.md").write_text(text + "\n")
    judges = ["seed", *(f"iteration {n}" for n in range(1, len(whole[RECIPE.name])))]
    plotted = [
        section(name, agreement_plot(judges, {RECIPE.told: series[RECIPE.told], name: of}))
        for name, of in series.items()
        if name != RECIPE.told
    ]
    remark = note(
        f"Accuracy of the single verdict on the labelled pairs, the mean of {seeds} run seeds; "
        "whiskers are 95% intervals of that mean, resampled by pair."
    )
    title = "Which part of the recipe makes the judge better?"
    (out / "ablation.html").write_text(page(title, tag("h1", title), remark, *plotted))
    raw = {
        name: [{"accuracy": each.value, "ci95": each.interval} for each in of]
        for name, of in whole.items()
    }
    (out / "ablation.json").write_text(json.dumps(raw, indent=2) + "\n")


if __name__ == "__main__":
    main()
