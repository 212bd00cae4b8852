"""What do the loop and the step of a fine-tuning read?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from ste_jax.config import identity
from ste_jax.config.identity import came_later
from ste_jax.config.schema import LoraKnobs


@dataclass(frozen=True, kw_only=True)
class TrainingKnobs:
    """The knobs of one fine-tuning. `FinetuneKnobs` of the config says what each of them means, and
    what it is by default.

    Their order is that of the config's group: the places of training states hold a hash of them in
    this order.
    """

    group: str
    """The group of the config that the knobs are from, for messages."""
    start_from: Literal["seed", "previous"]
    """Not read in this folder, which is given the model; hashes have always held it."""
    epochs: float
    max_steps: int
    sequence_length: int
    too_long: Literal["drop", "truncate"] = came_later(before="drop")
    batch_rows: int
    accumulate: int
    optimizer: Literal["adamw", "adafactor"] = came_later(before="adamw")
    schedule: Literal["cosine", "linear", "constant"] = came_later(before="cosine")
    learning_rate: float
    final_learning_rate_fraction: float
    schedule_steps: int = came_later(before=0)
    warmup_steps: int
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float
    moments_dtype: Literal["float32", "bfloat16"] = came_later(before="float32")
    remat: Literal["none", "layer"]
    param_dtype: Literal["float32", "bfloat16"]
    rounding: Literal["nearest", "stochastic"] = came_later(before="nearest")
    dtype: Literal["float32", "bfloat16"]
    validate_every: int
    select: Literal["best", "last"] = came_later(before="best")
    save_every: int
    keep_states: int
    lora: LoraKnobs

    @classmethod
    def of(cls, knobs: Any) -> TrainingKnobs:
        """A training by `FinetuneKnobs` of the config, which this folder does not know: each knob
        is the one of the same name."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "group"]
        shared: dict[str, Any] = {name: getattr(knobs, name) for name in names}
        return cls(group="finetune", **shared)

    def identity(self) -> dict[str, Any]:
        """What a fingerprint holds of the knobs: those that decide the result."""
        unread = () if self.param_dtype == "bfloat16" else ("rounding",)  # nothing is rounded
        return identity.of(self, without=(*_ELSEWHERE, *unread))

    def named(self) -> dict[str, Any]:
        """These knobs by the names that they have in a config (see `identity.named`)."""
        return identity.named("finetune", self, without=_ELSEWHERE)


_ELSEWHERE = ("group", "save_every", "keep_states")
"""Knobs of messages and of what is kept meanwhile: the result is the same."""
