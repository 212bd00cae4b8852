"""How is one of many similar runs made: begun from what another has finished, resumed, and read?

A *cell* is a run of one config under overrides, in a directory of its own. Cells that differ after
the pairs only begin as copies of what a base run has selected, paired and measured, so that they
differ in nothing else. Every cell is an ordinary run: killed, it resumes; finished, it does
nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from numpy.typing import NDArray

from ste_jax.config.load import load_config
from ste_jax.evaluation.metrics import with_intervals
from ste_jax.evaluation.traces import CHECKERS
from ste_jax.parallel.processes import Processes
from ste_jax.pico.answers import is_right, stated
from ste_jax.pico.traces import led_to
from ste_jax.pico.world import understand
from ste_jax.pipeline.recipe import run
from ste_jax.records import Judgment, Pair, Prompt
from ste_jax.reporting.columns import read_verdicts
from ste_jax.reporting.examples import questions_right
from ste_jax.run.layout import RunDir
from ste_jax.system import compilation_cache, files, preemption
from ste_jax.system.errors import SteError, WorkError
from ste_jax.tasks import PAIRWISE

SETS = ("same-task", "other-task")
"""The labelled sets that pico's judges are measured on."""
CHECKER = CHECKERS["pico"]
RESAMPLES = 2000
SHARED = ("manifest.json", "rejected.jsonl", "instructions", "pairs", "labelled", "iterations/0")
"""What of a run does not depend on how its judges are trained."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A variation of a run."""

    name: str
    title: str
    """What tables and plots call it."""
    overrides: tuple[str, ...] = ()
    prepare: Callable[[RunDir], None] | None = None
    """Changes the copied tables before the run goes on; happens once."""


DEMO = Cell(name="demo", title="the recipe")


def start(description: str | None) -> argparse.Namespace:
    """Which config is run, under which seeds, and where; on two devices, as `make demo`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--config", default="configs/pico.yaml", metavar="FILE",
                      help="what is run (default: %(default)s)")  # fmt: skip
    made.add_argument("--out", type=Path, default=Path("runs/pico-seeds"), metavar="DIR",
                      help="where the runs and the tables go; a run that is there is gone on with, "
                      "whichever benchmark began it (default: %(default)s)")  # fmt: skip
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED",
                      help="the runs' random seeds (default: 1 2 3)")  # fmt: skip
    given = made.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    compilation_cache.enable()
    preemption.install()
    return given


def ended(main: Callable[[], int]) -> int:
    """The exit status of a benchmark; an error of ours is printed as its one sentence."""
    try:
        return main()
    except SteError as error:
        print(error, file=sys.stderr)
        return error.exit_status


def run_cell(cell: Cell, config: str, seed: int, root: Path, base: Path | None = None) -> RunDir:
    """Bring a cell to its end. With `base` its beginning is copied from there.

    Raises:
      WorkError: the pairs are no longer those that were copied (and perhaps shuffled): since then
        the config or the code that makes them has changed.
    """
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
        (fresh / _COPIED).write_text(_digest(fresh / "pairs"))
        fresh.rename(root)
    knobs = load_config(config, [f"seed={seed}", *cell.overrides])
    made = run(knobs, epath.Path(root), Processes())
    if base is not None and (root / _COPIED).read_text() != _digest(root / "pairs"):
        raise WorkError(
            f"the pairs in {root} were made anew since they were copied from {base}, so the two "
            f"no longer differ in one thing: delete {root} and run again"
        )
    return made


_COPIED = "copied_pairs.sha256"


def _digest(directory: Path) -> str:
    """Of all tables in a directory, by their bytes."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*.parquet")):
        digest.update(str(path.relative_to(directory)).encode() + path.read_bytes())
    return digest.hexdigest()


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


def pooled(evaluation: dict[str, Any], measure: str) -> float:
    """A judge's measure on all sets together: they are equally large."""
    return sum(evaluation["sets"][name][measure] for name in SETS) / len(SETS)


def kept(run: RunDir) -> list[int]:
    """Judgments kept in each iteration, A and B together."""
    return [sum(files.read_json(each.curation)["kept"].values()) for each in run.iterations()[1:]]


def taught(run: RunDir) -> list[dict[str, Any]]:
    """What the checker finds in that which each iteration's judge learnt from. A row per iteration:
    how many judgments, how many of them are of no task of this world, and the shares of the others
    that are of a rightly labelled pair (the chosen answer is right, the rejected one is not), that
    are right in every step, and in which the rejected answer is that to a held-out task."""
    pairs = {pair.id: pair for pair in run.pairs.rows()}
    heldout = {
        _identity(pair.messages[-1]["content"]) for n in SETS for pair in run.labelled(n).rows()
    }
    found = []
    for each in run.iterations()[1:]:
        prompts = {prompt.id: prompt for prompt in each.prompts.rows()}
        counts: Counter[str] = Counter()
        for row in each.training.rows():
            prompt = prompts[row.prompt_id]
            pair = pairs[prompt.pair_id]
            counts["judgments"] += 1
            if _identity(pair.messages[-1]["content"]) is not None:
                counts["tasks"] += 1
                counts["labelled"] += rightly_labelled(pair)
                counts["sound"] += all(CHECKER.steps(row.completion, pair, prompt).values())
                other = _identity(pair.modified_instruction)
                counts["met"] += other is not None and other in heldout
        tasks = max(counts["tasks"], 1)
        found.append(
            {
                "iteration": each.index,
                "judgments": counts["judgments"],
                "of no task": counts["judgments"] - counts["tasks"],
                "rightly labelled": counts["labelled"] / tasks,
                "right in every step": counts["sound"] / tasks,
                "with an answer to a held-out task": counts["met"] / tasks,
            }
        )
    return found


def _identity(instruction: str) -> str | None:
    task = understand(instruction)
    return task.identity if task else None


def rightly_labelled(pair: Pair) -> bool:
    """Whether the checker finds the chosen answer right and the rejected one not."""
    task = understand(pair.messages[-1]["content"])
    return (
        task is not None
        and is_right(task, pair.chosen)
        and stated(pair.rejected) != task.solution.answer
    )


def _said(run: RunDir, judge: int) -> Iterator[tuple[str, Pair, Prompt, Judgment]]:
    """Everything that one judge says of the labelled sets: the set, the pair, how it was asked."""
    for name in SETS:
        measured = run.iterations()[judge].labelled(name)
        pairs = {pair.id: pair for pair in run.labelled(name).rows()}
        prompts = {prompt.id: prompt for prompt in measured.prompts.rows()}
        for said in measured.judgments.rows():
            prompt = prompts[said.prompt_id]
            yield name, pairs[prompt.pair_id], prompt, said


def by_letter(run: RunDir, judge: int) -> dict[str, float]:
    """Of one judge on all sets: `A` and `B`, the accuracy where that letter is right; `nowhere`,
    the share of judgments whose own comparisons name no one answer; and `led_to`, the accuracy if
    each had ended as its comparisons lead to, and those with a coin."""
    counts: Counter[str] = Counter()
    for _, _, prompt, said in _said(run, judge):
        label, led = prompt.label, led_to(said.text)
        counts.update({"all": 1, label: 1})
        counts[f"right {label}"] += said.verdict == label
        counts["led rightly"] += led == label
        counts["nowhere"] += led is None
    return {
        **{letter: counts[f"right {letter}"] / counts[letter] for letter in "AB"},
        "nowhere": counts["nowhere"] / counts["all"],
        "led_to": (counts["led rightly"] + counts["nowhere"] / 2) / counts["all"],
    }


def reasoned(run: RunDir) -> dict[str, Any]:
    """Of how many of its judgments on all sets the last judge gets every step before the verdict
    right, less the seed's: `gain` and `gain_ci95`, resampled by pair."""
    right: list[Counter[tuple[str, str]]] = []
    for judge in (0, -1):
        right.append(Counter())
        for name, pair, prompt, said in _said(run, judge):
            steps = CHECKER.steps(said.text, pair, prompt)
            right[-1][name, pair.id] += steps["before_the_verdict"]
    first, last = (np.array([each[pair] for pair in sorted(right[0])]) for each in right)
    asked = np.full(len(first), 2)
    return with_intervals({"gain": (last - first, asked)}, RESAMPLES, seed=0)


@dataclass(frozen=True)
class Hits:
    """How often the judges of some runs, iteration by iteration, were right on labelled pairs."""

    right: NDArray[np.int64]
    """[judges, pairs]: orders got right, summed over the runs."""
    asked: int
    """How often each pair was judged: twice in each run."""

    def accuracies(self) -> list[dict[str, Any]]:
        """Of each iteration's judge, `accuracy` and `accuracy_ci95`: of the mean over these very
        runs, resampled by pair, all runs together."""
        asked = np.full(self.right.shape[1], self.asked)
        return [
            with_intervals({"accuracy": (right, asked)}, RESAMPLES, seed=0) for right in self.right
        ]

    def share_of_gain(self, whole: Hits) -> dict[str, Any]:
        """`share` and `share_ci95`: the gain from the first judge to the last, over that of
        `whole`, whose first judge is the same."""
        gains = self.right[-1] - self.right[0], whole.right[-1] - whole.right[0]
        return with_intervals({"share": gains}, RESAMPLES, seed=0)


def hits(runs: Iterable[RunDir], names: Sequence[str]) -> Hits:
    """Count over runs of equally many iterations, on some labelled sets together."""
    right: list[Counter[tuple[str, str]]] = []
    asked = 0
    for each in runs:
        asked += 2
        for index, judge in enumerate(each.iterations()):
            if index == len(right):
                right.append(Counter())
            for name in names:
                found = questions_right(PAIRWISE, judge.labelled(name))
                right[index].update({(name, pair): orders for pair, orders in found.items()})
    pairs = sorted(right[0])
    return Hits(np.array([[judge[pair] for pair in pairs] for judge in right]), asked)


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
    if not both:
        return 0, math.nan, math.nan
    accuracies = [sum(said[id] == labels[id] for id in both) / len(both) for said in (first, last)]
    return len(both), accuracies[0], accuracies[1]
