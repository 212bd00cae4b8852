"""Are the figures of pairwise judges, bit for bit, those of before there were tasks?

`pairwise_figures.json` was written by the code of that time, on the judgments that `drawn` draws.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ste_jax.evaluation.metrics import compare, measure, measure_groups
from ste_jax.records import Judgment, Prompt
from ste_jax.tasks import PAIRWISE

STORED = json.loads((Path(__file__).parent / "pairwise_figures.json").read_text())


def drawn(seed: int, pairs: int, votes: int) -> tuple[list[Prompt], list[Judgment]]:
    draw = random.Random(seed)
    prompts = [
        Prompt(id=f"q{n:03}{order}", pair_id=f"p{n:03}", order=order, messages=(), label=label)
        for n in range(pairs)
        for order, label in (("ab", "A"), ("ba", "B"))
    ]
    judgments = []
    for prompt in prompts:
        too_long = draw.random() < 0.05
        for sample in range(votes):
            verdict = draw.choice(["A", "A", "B", "tie", prompt.label, prompt.label, None])
            forced = draw.random() < 0.2
            failure = None
            if forced:
                failure = "no_verdict"
            elif verdict is None:
                failure = draw.choice(["conflict", "cut_off"])
            if too_long:
                verdict, forced, failure = None, False, "too_long"
            judgments.append(
                Judgment(
                    id=f"{prompt.id}/{sample}",
                    prompt_id=prompt.id,
                    judge="j",
                    iteration=0,
                    sample=sample,
                    text="",
                    token_ids=(),
                    verdict=verdict,
                    failure=failure,
                    forced=forced,
                    finish_reason="stop",
                    free_tokens=0,
                )
            )
    return prompts, judgments


@pytest.mark.parametrize("name", STORED)
def test_the_figures_are_what_they_were(name: str) -> None:
    seed, pairs, votes = map(int, name.split("/"))
    prompts, judgments = drawn(seed, pairs, votes)
    others = [
        Judgment(**{**vars(other), "prompt_id": own.prompt_id})
        for own, other in zip(judgments, drawn(seed + 1, pairs, votes)[1], strict=True)
    ]
    steps = {each.prompt_id: {"one": each.verdict == "A", "two": True} for each in judgments}
    groups = {
        prompt.pair_id: "odd" if int(prompt.pair_id[1:]) % 2 else "even" for prompt in prompts
    }
    found = {
        "measure": measure(PAIRWISE, prompts, judgments, bootstrap=300, steps=steps),
        "groups": measure_groups(PAIRWISE, prompts, judgments, groups, bootstrap=100),
        "compare": compare(PAIRWISE, prompts, judgments, others, bootstrap=200, seed=3),
    }
    assert json.dumps(found) == json.dumps(STORED[name])  # the order of keys, too
