"""Which training is timed?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.shapes import published
from ste_jax.config.schema import FinetuneKnobs
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.packing import Example
from ste_jax.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Training:
    """Steps of AdamW on rows of random tokens, the first half of each masked."""

    config: ModelConfig
    rows: int
    length: int
    steps: int
    dtype: str = "float32"
    accumulate: int = 1
    """Micro-batches of a step. By measurement: on CPU products of fewer rows, whose results lie in
    a cache when they are wanted next, take a fifth less, here and in torch."""
    remat: str = "none"
    """By measurement: on CPU, where memory is large and products are slow, nothing is computed
    again."""

    def examples(self) -> list[Example]:
        """A row's worth each; enough for all steps."""
        draw = np.random.default_rng(1)
        half = self.length // 2
        found = []
        for number in range(self.rows * self.steps):
            ids = draw.integers(100, self.config.vocab_size, self.length).tolist()
            found.append(
                Example(
                    id=f"{number:06d}",
                    prompt_ids=tuple(ids[:half]),
                    completion_ids=tuple(ids[half:]),
                )
            )
        return found

    def knobs(self) -> TrainingKnobs:
        """As a user would set them."""
        return TrainingKnobs.of(
            FinetuneKnobs(
                sequence_length=self.length,
                batch_rows=self.rows,
                accumulate=self.accumulate,
                learning_rate=1e-5,
                remat=self.remat,  # type: ignore[arg-type]
                dtype=self.dtype,  # type: ignore[arg-type]
                param_dtype=self.dtype,  # type: ignore[arg-type]
                validate_every=10**9,
                save_every=10**9,
            )
        )

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * self.length


CPU = Training(config=published("SmolLM2-135M"), rows=8, length=512, steps=4, accumulate=4)
GPU_1B = Training(
    config=published("Llama-3.2-1B"), rows=8, length=4096, steps=6, dtype="bfloat16", remat="layer"
)
GPU_3B = Training(
    config=published("Llama-3.2-3B"), rows=4, length=4096, steps=6, dtype="bfloat16", remat="layer"
)
TRAININGS = {"cpu": CPU, "1b": GPU_1B, "3b": GPU_3B}
