"""Which knobs are there, what do they mean, and what do they default to?

Every knob of a run is a field of a frozen dataclass in this folder: its default, its type and its
meaning stand there and nowhere else. `recipe` has those of the stages and the `Config` that holds
all, `endpoint` those of a model elsewhere, `engine` those of the model's side.
`ste_jax.config.load` reads a config.

A number's type holds its range (`system/ranges.py`). A group's method `check(key)` raises
`RequestError` for knobs of the group that contradict each other; `key` is the group's name in the
config, as `select`. Both are checked when a config is read (`config/from_plain.py`). Stages and
engine read their knobs from here, so this folder imports almost nothing of the package."""

from ste_jax.config.schema.endpoint import LEAVABLE, EndpointKnobs
from ste_jax.config.schema.engine import (
    DecodingKnobs,
    DpoKnobs,
    FinetuneKnobs,
    LoraKnobs,
    MeshKnobs,
)
from ste_jax.config.schema.recipe import (
    AnnotateKnobs,
    Config,
    CurateKnobs,
    EvaluateKnobs,
    JudgeKnobs,
    LabelledSetKnobs,
    PairKnobs,
    PoolKnobs,
    RoleKnobs,
    RoleSet,
    RunKnobs,
    SamplingKnobs,
    SelectKnobs,
    TrackKnobs,
)

__all__ = [
    "LEAVABLE",
    "AnnotateKnobs",
    "Config",
    "CurateKnobs",
    "DecodingKnobs",
    "DpoKnobs",
    "EndpointKnobs",
    "EvaluateKnobs",
    "FinetuneKnobs",
    "JudgeKnobs",
    "LabelledSetKnobs",
    "LoraKnobs",
    "MeshKnobs",
    "PairKnobs",
    "PoolKnobs",
    "RoleKnobs",
    "RoleSet",
    "RunKnobs",
    "SamplingKnobs",
    "SelectKnobs",
    "TrackKnobs",
]
