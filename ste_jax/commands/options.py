"""In which shapes does a command decode?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ste_jax.config import identity
from ste_jax.config.schema import DecodingKnobs

SHORTEST_BUCKET = 512
USUAL_BUCKET = 4096
"""The largest bucket of prompts, unless a prompt is longer."""


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """The options of decoding on the command line."""

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
        """What a fingerprint holds of the options: those that decide the answers. Options that were
        added later are left out at their old value."""
        read = {field.name for field in dataclasses.fields(DecodingOptions)}
        found = identity.of(self, only=read - {"max_prompt_tokens"})  # it shows in the buckets
        shape = [found.pop("groups"), found.pop("group_size")]
        dtype, *others = identity.in_a_row(found, "dtype", "weights")
        largest = self._prompt_buckets(longest)[-1]
        return [dtype, shape, *others, *([largest] if largest != USUAL_BUCKET else [])]

    def _prompt_buckets(self, longest: int) -> tuple[int, ...]:
        buckets, most = [SHORTEST_BUCKET], self.max_prompt_tokens or max(longest, USUAL_BUCKET)
        while buckets[-1] < most:
            buckets.append(2 * buckets[-1])
        return tuple(buckets)
