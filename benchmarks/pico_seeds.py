"""Does the demo's judge teach itself, whatever the random seed?

`python benchmarks/pico_seeds.py` runs `configs/pico.yaml` under run seeds 1, 2 and 3, some seven
minutes each on two cores, and holds what was measured against what is claimed. Killed, it goes on;
finished, it only prints. Its exit status is 1 if a claim does not hold.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.cells import (
    DEMO,
    SETS,
    both_parsed,
    by_letter,
    ended,
    evaluations,
    hits,
    kept,
    pooled,
    reasoned,
    run_cell,
    start,
    taught,
)
from benchmarks.claims import claim_line
from ste_jax.reporting.tables import markdown
from ste_jax.run.layout import RunDir

BEFORE = "step_before_the_verdict"
MEASURES = {
    "right": "accuracy",
    "in both orders": "consistent_accuracy",
    "every step right": "sound",
    "every step before the verdict": BEFORE,
}
TOGETHER = MEASURES | {
    "no verdict": "unparsed",
    "A among verdicts": "share_a",
    "solved": "step_solved",
    "quoted": "step_quoted",
    "compared": "step_compared",
}


def claims(
    run: RunDir, curve: list[dict[str, Any]], reasoning: dict[str, Any]
) -> Iterator[tuple[str, bool]]:
    """What is claimed of a run, and whether it holds; `curve` has the accuracies of its judges on
    both sets together, `reasoning` what `reasoned` found."""
    judged = evaluations(run)
    seed, last = judged[0], judged[-1]
    before, after = curve[0], curve[-1]
    error = {name: 1 - each["accuracy"] for name, each in (("seed", before), ("last", after))}
    yield "the seed's accuracy is within 0.55..0.80", 0.55 <= before["accuracy"] <= 0.80
    yield "the error is at most half of the seed's", error["last"] <= 0.5 * error["seed"]
    yield "intervals of the accuracy apart", before["accuracy_ci95"][1] < after["accuracy_ci95"][0]
    for name in SETS:
        first, now = seed["sets"][name], last["sets"][name]
        apart = first["accuracy_ci95"][1] < now["accuracy_ci95"][0]
        yield f"{name}: the error falls, intervals apart", apart
        yield f"{name}: the share right in every step does not fall", now["sound"] >= first["sound"]
    title = "the share right in every step before the verdict is not shown to fall"
    yield title, reasoning["gain_ci95"][1] >= 0
    both_orders = [pooled(each, "consistent_accuracy") for each in (seed, last)]
    yield "right in both orders: up", both_orders[1] > both_orders[0]
    yield "right in both orders: at least 0.90", both_orders[1] >= 0.90
    yield "the seed leaves at most 2% unparsed", pooled(seed, "unparsed") <= 0.02


def rows(seed: int, run: RunDir) -> Iterator[dict[str, Any]]:
    """A line of the table for each judge of a run."""
    for index, evaluation in enumerate(evaluations(run)):
        row: dict[str, Any] = {"run seed": seed, "judge": index or "seed"}
        for name in SETS:
            for title, key in MEASURES.items():
                row[f"{name}: {title}"] = evaluation["sets"][name][key]
                row[f"{name}: {title}_ci95"] = evaluation["sets"][name][f"{key}_ci95"]
        yield row


def together(seed: int, run: RunDir, curve: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A line for each judge of a run: both sets together."""
    judged = zip([0, *kept(run)], evaluations(run), curve, strict=True)
    for index, (count, evaluation, found) in enumerate(judged):
        row: dict[str, Any] = {"run seed": seed, "judge": index or "seed", "learnt from": count}
        for title, key in TOGETHER.items():
            row[title] = pooled(evaluation, key)
        yield row | {"right": found["accuracy"], "right_ci95": found["accuracy_ci95"]}


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """What is printed of a run beside the tables."""
    for claim, holds in found["claims"].items():
        yield claim_line(claim, holds)
    first, *_, last = found["errors"]
    yield f"both sets: error {first:.3f} -> {last:.3f}, {last / first:.0%}"
    for name, (n, before, after) in found["both_parsed"].items():
        yield (
            f"{name}, {n} prompts that seed and last judge both parsed: {before:.3f} -> {after:.3f}"
        )
    gain, (low, high) = found["reasoned"]["gain"], found["reasoned"]["gain_ci95"]
    yield f"right in every step before the verdict: {gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    for title, each in zip(("seed", "last judge"), found["by_letter"], strict=True):
        yield (
            f"{title}: right where A is right {each['A']:.3f}, where B is {each['B']:.3f}; if it "
            f"had concluded as its own comparisons lead to {each['led_to']:.3f}; they lead nowhere "
            f"for {each['nowhere']:.3f}, which count half"
        )


def main() -> int:
    """Run, print, check."""
    given = start(__doc__)
    table: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    learnt: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for seed in given.seeds:
        run = run_cell(DEMO, given.config, seed, given.out / f"seed-{seed}" / DEMO.name)
        table += rows(seed, run)
        learnt += [{"run seed": seed, **each} for each in taught(run)]
        curve = hits([run], SETS).accuracies()
        lines, reasoning = list(together(seed, run, curve)), reasoned(run)
        whole += lines
        results[str(seed)] = {
            "together": lines,
            "reasoned": reasoning,
            "claims": dict(claims(run, curve, reasoning)),
            "both_parsed": {name: both_parsed(run, name) for name in SETS},
            "errors": [1 - each["accuracy"] for each in curve],
            "by_letter": [by_letter(run, judge) for judge in (0, -1)],
        }
    print(markdown(table))
    print(f"\nBoth sets together\n\n{markdown(whole)}")
    print(f"\nWhat they learnt from\n\n{markdown(learnt)}\n")
    (given.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for seed, found in results.items():
        for line in _lines(found):
            print(f"run seed {seed}: {line}")
    return 0 if all(all(found["claims"].values()) for found in results.values()) else 1


if __name__ == "__main__":
    sys.exit(ended(main))
