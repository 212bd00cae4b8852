"""How were the shipped instructions and the labelled held-out pairs made?

`python -m ste_jax.pico.make_data` writes them.

It writes the same files every time. Held-out tasks are from a share of the world that neither the
seed's training nor the instructions draw from, so they are new in every phrasing. The task is new,
not its arithmetic: a sum that is held out as a task may be a step of a longer task elsewhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from ste_jax.pico.answers import draw_answer, wrong_solution
from ste_jax.pico.kinds import KINDS, Kind
from ste_jax.pico.noise import draw_noise
from ste_jax.pico.world import Task, changes, draw_task
from ste_jax.system.shipped import path_of
from ste_jax.tasks.pairwise import FIRST, SECOND

TASKS, NEAR_DUPLICATES, NOISE = 1500, 120, 180
HELDOUT = 12
"""Labelled pairs of each sort for each kind of task and difficulty."""
FEW = {"cents": (1, 2, 3), "minutes": (1, 2, 3), "middle": (1,), "total": (1,), "later": (2,)}
"""Kinds and difficulties that are not held out: of so few tasks that fresh ones ran out."""

Cell = tuple[Kind, int | None]
"""A kind of task and a difficulty; None: any."""


def instructions(draw: Random) -> Iterator[dict[str, Any]]:
    """The rows of the pool: tasks, some of them twice with another mark at the end, and noise."""
    texts = [draw_task(draw, "known").instruction for _ in range(TASKS)]
    texts += [text[:-1] + draw.choice(("", "!")) for text in draw.sample(texts, NEAR_DUPLICATES)]
    texts += [draw_noise(draw) for _ in range(NOISE)]
    draw.shuffle(texts)
    yield from ({"instruction": text} for text in texts)


def labelled(
    draw: Random, cells: Sequence[Cell], count: int, *, same_task: bool, seen: set[str]
) -> Iterator[dict[str, Any]]:
    """Pairs of a right answer and a wrong one: a near miss to the same task, or an answer that is
    right for a similar one. Tasks of which one was `seen` are left out."""
    for number in range(count):
        kind, level = cells[number % len(cells)]
        task = draw_task(draw, "heldout", kind)
        while task.identity in seen or level not in (None, task.level):
            task = draw_task(draw, "heldout", kind)
        seen.add(task.identity)
        right = draw_answer(task.solution, draw)
        wrong = wrong_solution(task, draw) if same_task else next(changes(task, draw)).solution
        yield _row(task, right, draw_answer(wrong, draw), draw)


def _row(task: Task, right: str, wrong: str, draw: Random) -> dict[str, Any]:
    label = draw.choice((FIRST, SECOND))
    a, b = (right, wrong) if label == FIRST else (wrong, right)
    return {
        "instruction": task.instruction,
        "response_a": a,
        "response_b": b,
        "label": label,
        "kind": task.kind,
        "level": task.level,
    }


def tables() -> dict[str, Iterator[dict[str, Any]]]:
    """The rows of every file, by its name."""
    cells: list[Cell] = [
        (kind, level)
        for kind in KINDS
        for level in (1, 2, 3)
        if level not in FEW.get(kind.name, ())
    ]
    seen, count = tried(), HELDOUT * len(cells)
    same, other = Random("held out 4: same task"), Random("held out 4: other task")
    return {
        "instructions": instructions(Random("instructions")),
        "same-task": labelled(same, cells, count, same_task=True, seen=seen),
        "other-task": labelled(other, cells, count, same_task=False, seen=seen),
    }


def tried() -> set[str]:
    """The tasks of earlier labelled pairs, on which seed and demo were measured while they were
    made."""
    anything: list[Cell] = [(kind, None) for kind in KINDS]
    most: list[Cell] = [(kind, None) for kind in KINDS if kind.name not in ("cents", "minutes")]
    found: set[str] = set()
    for drawn, cells, count, apart in (
        ("", anything, 260, False),
        ("held out, ", anything, 260, False),
        ("held out: ", most, 256, True),
    ):
        seen = set(found) if apart else set()
        for name, same_task in (("same task", True), ("other task", False)):
            list(labelled(Random(drawn + name), cells, count, same_task=same_task, seen=seen))
        found |= seen
    return found


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Make the instructions and the held-out pairs.")
    parser.add_argument("--out", type=Path, default=path_of("pico").parent, metavar="DIR",
                        help="default: where the package has them, in their place")  # fmt: skip
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in tables().items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(lines)


if __name__ == "__main__":
    main()
