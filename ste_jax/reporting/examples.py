"""Which pairs are worth reading, and what did each judge say of them?

The choice is fixed by the run: by id (a hash, so a fair draw) among the pairs on which the last
judge does better than the first, worse, and the same. Only the chosen pairs' texts are kept in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from ste_jax.records import ORDERS, Pair, Prompt
from ste_jax.reporting.columns import read_columns
from ste_jax.run.layout import JudgedDir, RunDir, Table


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
    """A pair as it was judged in both orders."""

    pair: Pair
    first_right: int
    """Orders (0 to 2) that the first judge, and the last, got right."""
    last_right: int
    views: list[View]


def heldout_examples(run: RunDir) -> list[Example]:
    """A handful of held-out pairs: 2 that the last judge judges better, 2 worse, filled up to 6."""
    judged = {each.index: each.heldout for each in run.iterations()}
    return _examples(judged, run.pairs, better=2, worse=2, shown=6)


def labelled_examples(run: RunDir, name: str) -> list[Example]:
    """Pairs of a labelled set: 5 that the last judge judges better than the first, 2 worse."""
    judged = {each.index: each.labelled(name) for each in run.iterations()}
    return _examples(judged, run.labelled(name), better=5, worse=2, shown=0)


def _examples(
    by_judge: dict[int, JudgedDir], pairs: Table[Pair], *, better: int, worse: int, shown: int
) -> list[Example]:
    judged = {index: each for index, each in by_judge.items() if each.judgments.complete()}
    if not judged:
        return []
    first, last = orders_right(judged[min(judged)]), orders_right(judged[max(judged)])
    both = sorted(first.keys() & last.keys())
    chosen = [id for id in both if last[id] > first[id]][:better]
    chosen += [id for id in both if last[id] < first[id]][:worse]
    chosen += [id for id in both if last[id] == first[id]][: max(0, shown - len(chosen))]
    found = {pair.id: pair for pair in pairs.rows() if pair.id in set(chosen)}
    views = _views(judged, set(chosen))
    return [Example(found[id], first[id], last[id], views[id]) for id in chosen if id in found]


def orders_right(judged: JudgedDir) -> dict[str, int]:
    """Pair id -> orders (0 to 2) in which the single verdict is right."""
    asked = read_columns(judged.prompts, "id", "pair_id", "label")
    prompts = {id: (pair_id, label) for id, pair_id, label in asked}
    right = {pair_id: 0 for pair_id, _ in prompts.values()}
    said = read_columns(judged.judgments, "prompt_id", "sample", "verdict")
    for prompt_id, sample, verdict in said:
        if sample == 0 and prompt_id in prompts:
            pair_id, label = prompts[prompt_id]
            right[pair_id] += verdict == label
    return right


def _views(judged: dict[int, JudgedDir], chosen: set[str]) -> dict[str, list[View]]:
    asked = judged[max(judged)].prompts.rows()
    prompts = {prompt.id: prompt for prompt in asked if prompt.pair_id in chosen}
    said: dict[str, dict[int, Said]] = {id: {} for id in prompts}
    columns = ("prompt_id", "sample", "text", "verdict", "failure", "forced")
    for index, each in judged.items():
        for prompt_id, sample, *values in read_columns(each.judgments, *columns):
            if sample == 0 and prompt_id in said:
                said[prompt_id][index] = Said(*values)
    views: dict[str, list[View]] = {id: [] for id in chosen}
    for prompt in sorted(prompts.values(), key=lambda prompt: ORDERS.index(prompt.order)):
        views[prompt.pair_id].append(View(prompt, said[prompt.id]))
    return views
