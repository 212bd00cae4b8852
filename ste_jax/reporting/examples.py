"""Which held-out pairs are worth reading, and what did each judge say of them?

The choice is fixed by the run: by id (a hash, so a fair draw) among the pairs on which the last
judge does better than the first, worse, and the same. Only the chosen pairs' texts are kept in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from ste_jax.records import ORDERS, Pair, Prompt
from ste_jax.reporting.columns import read_columns
from ste_jax.rundir import IterationDir, RunDir

_CHANGED, _SHOWN = 2, 6


@dataclass(frozen=True)
class Said:
    """A judge's first judgment of a prompt: its words, and what they came to."""

    text: str
    verdict: str | None
    failure: str | None
    forced: bool


@dataclass(frozen=True)
class View:
    """A pair in one order, and what the judge of each iteration said of it."""

    prompt: Prompt
    said: dict[int, Said]


@dataclass(frozen=True)
class Example:
    """A held-out pair as it was judged in both orders."""

    pair: Pair
    first_right: int
    """Orders (0 to 2) that the first judge, and the last, got right."""
    last_right: int
    views: list[View]


def examples(run: RunDir) -> list[Example]:
    """A handful of pairs: up to 2 better and 2 worse judged by the last judge, filled up to 6."""
    judged = [each for each in run.iterations() if each.heldout.judgments.complete()]
    if not judged:
        return []
    first, last = _right(judged[0]), _right(judged[-1])
    both = sorted(first.keys() & last.keys())
    better = [id for id in both if last[id] > first[id]][:_CHANGED]
    worse = [id for id in both if last[id] < first[id]][:_CHANGED]
    changed = better + worse
    same = [id for id in both if last[id] == first[id]][: _SHOWN - len(changed)]
    chosen = changed + same
    pairs = {pair.id: pair for pair in run.pairs.rows() if pair.id in set(chosen)}
    views = _views(judged, set(chosen))
    return [Example(pairs[id], first[id], last[id], views[id]) for id in chosen if id in pairs]


def _right(iteration: IterationDir) -> dict[str, int]:
    """Pair id -> orders in which the single verdict is right."""
    asked = read_columns(iteration.heldout.prompts, "id", "pair_id", "label")
    prompts = {id: (pair_id, label) for id, pair_id, label in asked}
    right = {pair_id: 0 for pair_id, _ in prompts.values()}
    said = read_columns(iteration.heldout.judgments, "prompt_id", "sample", "verdict")
    for prompt_id, sample, verdict in said:
        if sample == 0 and prompt_id in prompts:
            pair_id, label = prompts[prompt_id]
            right[pair_id] += verdict == label
    return right


def _views(judged: list[IterationDir], chosen: set[str]) -> dict[str, list[View]]:
    prompts = {
        prompt.id: prompt
        for prompt in judged[-1].heldout.prompts.rows()
        if prompt.pair_id in chosen
    }
    said: dict[str, dict[int, Said]] = {id: {} for id in prompts}
    columns = ("prompt_id", "sample", "text", "verdict", "failure", "forced")
    for iteration in judged:
        for prompt_id, sample, *values in read_columns(iteration.heldout.judgments, *columns):
            if sample == 0 and prompt_id in said:
                said[prompt_id][iteration.index] = Said(*values)
    views: dict[str, list[View]] = {id: [] for id in chosen}
    for prompt in sorted(prompts.values(), key=lambda prompt: ORDERS.index(prompt.order)):
        views[prompt.pair_id].append(View(prompt, said[prompt.id]))
    return views
