"""How is one of many like runs made: begun where another has come to, resumed, and read?

A *cell* is a run of one config under overrides, in a directory of its own. Cells that differ after
the pairs only begin as copies of what a base run has selected, paired and measured, so that they
differ in nothing else. Every cell is an ordinary run: killed, it resumes; finished, it does
nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from ste_jax import files
from ste_jax.config import load_config
from ste_jax.distributed import Processes
from ste_jax.evaluation.metrics import with_intervals
from ste_jax.pipeline import run
from ste_jax.reporting.columns import read_verdicts
from ste_jax.reporting.examples import orders_right
from ste_jax.reporting.tables import cells
from ste_jax.rundir import RunDir

SETS = ("same-task", "other-task")
"""The labelled sets that pico's judges are measured on."""
RESAMPLES = 2000
SHARED = ("manifest.json", "rejected.jsonl", "instructions", "pairs", "labelled", "iterations/0")
"""What of a run does not depend on how its judges are trained."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A variation of a run."""

    name: str
    told: str
    """What a reader is told it is."""
    overrides: tuple[str, ...] = ()
    prepare: Callable[[RunDir], None] | None = None
    """Changes the copied tables before the run goes on; happens once."""


DEMO = Cell(name="demo", told="the recipe")


def parser(description: str) -> argparse.ArgumentParser:
    """Which config is run, under which seeds, and where."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--config", default="configs/pico.yaml")
    made.add_argument("--out", type=Path, default=Path("runs/pico-seeds"), metavar="DIR")
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return made


def run_cell(cell: Cell, config: str, seed: int, root: Path, base: Path | None = None) -> RunDir:
    """Bring a cell to its end. With `base` its beginning is copied from there."""
    if base is not None and not root.exists():
        fresh = root.with_name(root.name + ".partial")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in SHARED:
            source, target = base / name, fresh / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            elif source.exists():
                shutil.copyfile(source, target)
        if cell.prepare is not None:
            cell.prepare(RunDir(epath.Path(fresh)))
        fresh.rename(root)
    knobs = load_config(config, [f"seed={seed}", f"name={cell.name}-{seed}", *cell.overrides])
    return run(knobs, epath.Path(root), Processes())


def shuffle_labels(run: RunDir) -> None:
    """Which answer of a pair is called the better one becomes chance, in the training pairs and in
    those that the checkpoint is chosen by; the held-out ones keep their labels."""
    draw = np.random.default_rng(0)
    for shard in range(run.pairs.shards):
        heldout = {row.id for row in run.selected.read(shard) if row.split == "heldout"}
        pairs = [
            pair
            if pair.instruction_id in heldout or draw.random() < 0.5
            else dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen)
            for pair in run.pairs.read(shard)
        ]
        run.pairs.write(shard, pairs)


def evaluations(run: RunDir) -> list[dict[str, Any]]:
    """What was measured of every judge of a run, the seed first."""
    return [files.read_json(each.evaluation) for each in run.iterations()]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table in Markdown: a measure is joined by its interval, `<name>_ci95`."""
    header, body = cells(rows)
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)]
    return "\n".join(lines)


def accuracy_curve(runs: Sequence[RunDir], names: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy of each iteration's judge on some labelled sets together, the mean over runs.

    Returns:
      For each iteration `accuracy` and `accuracy_ci95`: of the mean over these very runs, resampled
      by pair, all runs together.
    """
    curve = []
    for judges in zip(*(each.iterations() for each in runs), strict=True):
        right = Counter[tuple[str, str]]()
        for judge in judges:
            for name in names:
                found = orders_right(judge.labelled(name))
                right.update({(name, pair): orders for pair, orders in found.items()})
        hits = np.array([right[pair] for pair in sorted(right)])
        asked = np.full(len(hits), 2 * len(runs))
        curve.append(with_intervals({"accuracy": (hits, asked)}, RESAMPLES, seed=0))
    return curve


def both_parsed(run: RunDir, name: str) -> tuple[int, float, float]:
    """On the prompts of a labelled set on which the first judge and the last both gave a verdict:
    how many these are, and the accuracies of the two."""
    judges = run.iterations()
    first, last = (
        {
            said.prompt_id: said.verdict
            for said in read_verdicts(judge.labelled(name).judgments)
            if not said.sample and said.verdict is not None
        }
        for judge in (judges[0], judges[-1])
    )
    labels = {each.id: each.label for each in judges[0].labelled(name).prompts.rows()}
    both = [id for id in labels if id in first and id in last]
    accuracies = [sum(said[id] == labels[id] for id in both) / len(both) for said in (first, last)]
    return len(both), accuracies[0], accuracies[1]
