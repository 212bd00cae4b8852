"""What does a stage of fine-tuning train by, and towards what?"""

from __future__ import annotations

import dataclasses
from typing import Any

from ste_jax.config.from_plain import to_dict
from ste_jax.config.schema import FinetuneKnobs
from ste_jax.finetuning.objectives import Dpo, Objective, Sft

_ELSEWHERE = ("mesh", "save_every", "keep_states", "handover", "stages", "dpo")
"""Knobs of where training runs, of what is kept meanwhile, and of other stages: a stage's result is
the same."""
_LATER = {
    "too_long": "drop",
    "optimizer": "adamw",
    "schedule": "cosine",
    "schedule_steps": 0,
    "moments_dtype": "float32",
    "rounding": "nearest",
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
    changes = {name: value for name, value in own.items() if name in shared}
    if not knobs.dpo.sequence_length:
        del changes["sequence_length"]
    return dataclasses.replace(knobs, **changes)


def objective_of(knobs: FinetuneKnobs, stage: str) -> Objective:
    """What a stage minimizes."""
    if stage == "dpo":
        return Dpo(beta=knobs.dpo.beta, nll_scale=knobs.dpo.nll_scale)
    return Sft()


def told(knobs: FinetuneKnobs) -> dict[str, Any]:
    """What a stage's result depends on of its knobs."""
    found = to_dict(knobs)
    for name in _ELSEWHERE:
        del found[name]
    for name, before in _LATER.items():
        if found[name] == before:
            del found[name]
    if knobs.param_dtype == "float32":
        found.pop("rounding", None)  # nothing is rounded
    return found
