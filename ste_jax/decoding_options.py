"""Which shapes does a command decode in?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ste_jax.config import DecodingKnobs

SHORTEST_BUCKET = 512
MAX_PROMPT_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """What the command line says of decoding."""

    dtype: str = "float32"
    weights: str = "dtype"
    groups: int = 8
    group_size: int = 2
    max_prompt_tokens: int = MAX_PROMPT_TOKENS

    def knobs(self, new_buckets: tuple[int, ...]) -> DecodingKnobs:
        """The shapes: buckets of prompts that double, until one holds the longest."""
        buckets = [SHORTEST_BUCKET]
        while buckets[-1] < self.max_prompt_tokens:
            buckets.append(2 * buckets[-1])
        return DecodingKnobs(
            prompt_buckets=tuple(buckets),
            new_buckets=new_buckets,
            groups=self.groups,
            group_size=self.group_size,
            singles=self.groups * self.group_size,
            dtype=self.dtype,  # type: ignore[arg-type]  # the parser allows no other
            weights=self.weights,  # type: ignore[arg-type]
        )

    def identity(self) -> list[Any]:
        """What of it the answers hang on, for resumption: what is as it always was is not told."""
        told: list[Any] = [self.dtype, [self.groups, self.group_size]]
        buckets = self.knobs((1,)).prompt_buckets
        if self.weights != "dtype":
            told.append(self.weights)
        if buckets[-1] != MAX_PROMPT_TOKENS:
            told.append(buckets[-1])
        return told
