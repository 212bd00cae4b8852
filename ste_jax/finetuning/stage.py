"""What does a stage of fine-tuning train by, and towards what?"""

from __future__ import annotations

import dataclasses
from typing import Any

from ste_jax.config import FinetuneKnobs
from ste_jax.finetuning.loop import TIMELESS
from ste_jax.finetuning.objectives import Dpo, Objective, Sft
from ste_jax.strict import to_dict

_LATER = {
    "too_long": "drop",
    "optimizer": "adamw",
    "schedule": "cosine",
    "moments_dtype": "float32",
    "select": "best",
}
"""Knobs that earlier versions did not have, with what these did: so told, what they made is still
what would be made."""


def stage_knobs(knobs: FinetuneKnobs, stage: str) -> FinetuneKnobs:
    """The knobs of a stage: in DPO those of `finetune.dpo` stand in the place of SFT's."""
    if stage != "dpo":
        return knobs
    own = {field.name: getattr(knobs.dpo, field.name) for field in dataclasses.fields(knobs.dpo)}
    shared = {field.name for field in dataclasses.fields(knobs)}
    return dataclasses.replace(
        knobs, **{name: value for name, value in own.items() if name in shared}
    )


def objective_of(knobs: FinetuneKnobs, stage: str) -> Objective:
    """What a stage minimizes."""
    if stage == "dpo":
        return Dpo(beta=knobs.dpo.beta, nll_scale=knobs.dpo.nll_scale)
    return Sft()


def told(knobs: FinetuneKnobs, stage: str) -> dict[str, Any]:
    """The knobs that a stage's result depends on: where it runs, what is kept meanwhile, and what
    other stages do are none."""
    found = to_dict(stage_knobs(knobs, stage))
    for name in (*TIMELESS, "stages", "dpo"):
        del found[name]
    for name, before in _LATER.items():
        if found[name] == before:
            del found[name]
    if knobs.param_dtype == "float32":
        del found["rounding"]  # nothing is rounded
    if stage == "dpo":
        found["dpo"] = [knobs.dpo.beta, knobs.dpo.nll_scale]
    return found
