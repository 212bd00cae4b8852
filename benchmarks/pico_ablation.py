"""Which part of the recipe makes the judge better, and what would have made it seem so?

`python benchmarks/pico_ablation.py` trains pico's judge under variations of the recipe, each under
run seeds 1, 2 and 3, all from the same instructions and pairs of that seed: 24 runs of some five
minutes each on two cores. It writes a table (ablation.md, the same as JSON) and a page with a plot
(ablation.html). Killed, it goes on; finished, it only prints. Its exit status is 1 if what is
claimed of the controls does not hold.

Without rejection, a prompt's one sample is taken whatever its verdict, and of a seed that says one
letter oftener some are left out to balance them. So that control learns from at most half as many
judgments as the recipe keeps at first, and is held against the recipe on as few; how many it found
stands in the table. One order gives half as many prompts, and is to be held against that, too.

Under another run seed other modified instructions and judgments are drawn, and training goes in
another order; what is selected and what is drawn greedily is the same.
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
    Hits,
    both_parsed,
    ended,
    evaluations,
    hits,
    kept,
    pooled,
    run_cell,
    shuffle_labels,
    start,
)
from benchmarks.claims import claim_line
from ste_jax.reporting.page import note, page, section, tag
from ste_jax.reporting.plots import agreement_plot, share_of
from ste_jax.reporting.tables import markdown
from ste_jax.run.layout import RunDir

SHUFFLED = Cell(name="shuffled", title="labels shuffled", prepare=shuffle_labels)
OTHERS = (
    Cell(name="previous", title="from the last judge", overrides=("finetune.start_from=previous",)),
    Cell(name="one-order", title="one order only", overrides=("annotate.orders=one",)),
    Cell(name="n-1", title="N = 1", overrides=("annotate.samples=1",)),
    Cell(name="n-4", title="N = 4", overrides=("annotate.samples=4",)),
)

LOOSE = "no rejection sampling, half as many"
FEWER = "the recipe, half as many"
_GAIN = "% of the recipe's gain"


def halved(kept_at_first: int) -> tuple[Cell, Cell]:
    """Without rejection and with it, on half as many judgments as the recipe keeps at first."""
    limit = f"curate.limit={kept_at_first // 2}"
    loose = ("curate.verdicts=any", "annotate.samples=1", limit)
    return (
        Cell(name="any-verdict", title=LOOSE, overrides=loose),
        Cell(name="as-few", title=FEWER, overrides=(limit,)),
    )


def main() -> int:
    """Run every cell, then write what was found."""
    given = start(__doc__)
    runs: dict[str, list[RunDir]] = {}
    for seed in given.seeds:
        home = given.out / f"seed-{seed}"

        def made(cell: Cell, seed: int = seed, home: Path = home) -> RunDir:
            base = None if cell is DEMO else home / DEMO.name
            run = run_cell(cell, given.config, seed, home / cell.name, base)
            runs.setdefault(cell.title, []).append(run)
            return run

        recipe = made(DEMO)
        made(SHUFFLED)
        for cell in (*halved(kept(recipe)[0]), *OTHERS):
            made(cell)
    return 0 if write(given.out, runs) else 1


def write(out: Path, runs: dict[str, list[RunDir]]) -> bool:
    """The table, on the terminal and in a file, the same as JSON, and the page. Whether what is
    claimed of the controls holds."""
    counted = {title: hits(of, SETS) for title, of in runs.items()}
    curves = {title: each.accuracies() for title, each in counted.items()}
    whole = counted[DEMO.title]
    table = [_row("the seed", runs[DEMO.title], 0)]
    for title, of in runs.items():
        row = _row(title, of, -1)
        row["kept"] = " / ".join(f"{each:.0f}" for each in np.mean([kept(run) for run in of], 0))
        gain = counted[title].share_of_gain(whole)
        last = [hits([run], SETS).accuracies()[-1]["accuracy"] for run in of]
        row["by run seed"] = " / ".join(f"{each:.3f}" for each in last)
        row[_GAIN] = 100 * gain["share"]
        row[f"{_GAIN}_ci95"] = [100 * end for end in gain["share_ci95"]]
        table.append(row)
    claims = dict(controls(counted))
    lines = [f"- {claim_line(claim, holds)}" for claim, holds in claims.items()]
    text = "\n".join([markdown(table), "", *_without_form(runs), *lines, ""])
    print(text)
    (out / "ablation.md").write_text(text)
    (out / "ablation.json").write_text(json.dumps(curves, indent=2) + "\n")
    judges = ["seed", *(f"iteration {n}" for n in range(1, len(curves[DEMO.title])))]
    series = {title: [share_of(each, "accuracy") for each in of] for title, of in curves.items()}
    plotted = [
        section(title, agreement_plot(judges, {DEMO.title: series[DEMO.title], title: of}))
        for title, of in series.items()
        if title != DEMO.title
    ]
    remark = note(
        f"Accuracy of the single verdict on the labelled pairs, the mean of "
        f"{len(runs[DEMO.title])} run seeds; whiskers are 95% intervals of that mean, resampled by "
        "pair."
    )
    title = "Which part of the recipe makes the judge better?"
    (out / "ablation.html").write_text(page(title, tag("h1", title), remark, *plotted))
    return all(claims.values())


def _row(title: str, runs: list[RunDir], judge: int) -> dict[str, Any]:
    """One judge of some runs: intervals where pairs are resampled, else means over the runs."""
    judged = [evaluations(run)[judge] for run in runs]
    row: dict[str, Any] = {"cell": title, "kept": "", _GAIN: "", "by run seed": ""}
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


def _without_form(runs: dict[str, list[RunDir]]) -> Iterator[str]:
    """The gains where form plays no part."""
    for title, of in runs.items():
        found = np.array([both_parsed(run, name) for run in of for name in SETS])
        before, after = found[:, 0] @ found[:, 1:] / found[:, 0].sum()
        gain = f"{before:.3f} -> {after:.3f}"
        yield f"- {title}: on prompts that seed and last judge both parsed {gain}"


def controls(counted: dict[str, Hits]) -> Iterator[tuple[str, bool]]:
    """What is claimed of the controls, and whether it holds, by the upper end of the interval."""
    for title, whole in ((SHUFFLED.title, DEMO.title), (LOOSE, FEWER)):
        found = counted[title].share_of_gain(counted[whole])
        low, high = found["share_ci95"]
        share = f"{found['share']:.2f} [{low:.2f}, {high:.2f}]"
        yield f"{title}: less than a quarter of the gain of {whole} ({share})", high < 0.25


if __name__ == "__main__":
    sys.exit(ended(main))
