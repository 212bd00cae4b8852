"""Which shapes does a command decode in?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ste_jax.config.schema import DecodingKnobs

SHORTEST_BUCKET = 512
USUAL_BUCKET = 4096
"""The largest bucket where no prompt is longer."""


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """What the command line says of decoding."""

    dtype: str = "float32"
    weights: str = "dtype"
    groups: int = 8
    group_size: int = 2
    max_prompt_tokens: int | None = None
    """None: as many as the longest prompt has."""

    def knobs(self, new_buckets: tuple[int, ...], longest: int = 0) -> DecodingKnobs:
        """The shapes: buckets of prompts that double, until one holds the `longest`."""
        return DecodingKnobs(
            prompt_buckets=self._prompt_buckets(longest),
            new_buckets=new_buckets,
            groups=self.groups,
            group_size=self.group_size,
            singles=self.groups * self.group_size,
            dtype=self.dtype,  # type: ignore[arg-type]  # the parser allows no other
            weights=self.weights,  # type: ignore[arg-type]
        )

    def identity(self, longest: int = 0) -> list[Any]:
        """What of it the answers hang on, for resumption: what is as it always was is not told."""
        told: list[Any] = [self.dtype, [self.groups, self.group_size]]
        largest = self._prompt_buckets(longest)[-1]
        if self.weights != "dtype":
            told.append(self.weights)
        if largest != USUAL_BUCKET:
            told.append(largest)
        return told

    def _prompt_buckets(self, longest: int) -> tuple[int, ...]:
        buckets, most = [SHORTEST_BUCKET], self.max_prompt_tokens or max(longest, USUAL_BUCKET)
        while buckets[-1] < most:
            buckets.append(2 * buckets[-1])
        return tuple(buckets)
