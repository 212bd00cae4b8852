"""Does the demo's judge teach itself, whatever the random seed?

`python benchmarks/pico_seeds.py` runs `configs/pico.yaml` under run seeds 1, 2 and 3 and holds what
was measured against what is claimed. Killed, it goes on; finished, it only prints. Its exit status
is 1 if a claim does not hold.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.cells import DEMO, SETS, both_parsed, evaluations, markdown, parser, run_cell
from ste_jax import compilation_cache
from ste_jax.rundir import RunDir


def claims(run: RunDir) -> Iterator[tuple[str, bool]]:
    """What is claimed of a run, and whether it holds."""
    judged = evaluations(run)
    seed, last = judged[0], judged[-1]
    pooled = [_pooled(each) for each in (seed, last)]
    yield "seed accuracy in 0.55..0.80", 0.55 <= pooled[0]["accuracy"] <= 0.80
    yield (
        "error at most half of the seed's",
        1 - pooled[1]["accuracy"] <= (0.5 * (1 - pooled[0]["accuracy"])),
    )
    for name in SETS:
        before, after = (each["sets"][name] for each in (seed, last))
        apart = after["accuracy_ci95"][0] > before["accuracy_ci95"][1]
        yield f"{name}: error falls, intervals apart", apart
        yield f"{name}: sound share does not fall", after["sound"] >= before["sound"]
    yield "right in both orders at least 0.90", pooled[1]["consistent_accuracy"] >= 0.90
    yield "seed leaves at most 2% unparsed", pooled[0]["unparsed"] <= 0.02


def _pooled(evaluation: dict[str, Any]) -> dict[str, float]:
    """Both sets together: they are equally large."""
    sets = [evaluation["sets"][name] for name in SETS]
    keys = ("accuracy", "consistent_accuracy", "unparsed", "sound", "share_a")
    return {key: sum(each[key] for each in sets) / len(sets) for key in keys}


def rows(seed: int, run: RunDir) -> Iterator[dict[str, Any]]:
    """A line of the table for each judge of a run."""
    measures = {"right": "accuracy", "in_both_orders": "consistent_accuracy",
                "every_step_right": "sound"}  # fmt: skip
    for index, evaluation in enumerate(evaluations(run)):
        row: dict[str, Any] = {"run_seed": seed, "judge": index or "seed"}
        for name in SETS:
            for told, key in measures.items():
                row[f"{name}: {told}"] = evaluation["sets"][name][key]
                row[f"{name}: {told}_ci95"] = evaluation["sets"][name][f"{key}_ci95"]
        yield {**row, "A among verdicts": _pooled(evaluation)["share_a"]}


def main() -> int:
    """Run, print, check."""
    given = parser("The pico demo under several run seeds.").parse_args()
    compilation_cache.enable()
    table: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for seed in given.seeds:
        run = run_cell(DEMO, given.config, seed, given.out / f"seed-{seed}" / DEMO.name)
        table += rows(seed, run)
        parsed = {name: both_parsed(run, name) for name in SETS}
        results[str(seed)] = {"claims": dict(claims(run)), "both_parsed": parsed}
    print(markdown(table))
    (given.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for seed, found in results.items():
        for name, (n, before, after) in found["both_parsed"].items():
            print(f"run seed {seed}, {name}: on the {n} prompts that both the seed and the last")
            print(f"  judge parsed: {before:.3f} -> {after:.3f}")
        for claim, holds in found["claims"].items():
            print(f"run seed {seed}: {'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    return 0 if all(all(found["claims"].values()) for found in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
