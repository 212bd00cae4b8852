"""A model, examples and knobs small enough to train in a second, and a fine-tuning of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from ste_jax.config.schema import FinetuneKnobs, MeshKnobs
from ste_jax.finetuning.batch_source import BatchSource, PlannedRows
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.loop import Callbacks, FinetuneResult, finetune
from ste_jax.finetuning.objectives import Objective
from ste_jax.finetuning.packing import Example, Unit
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.sharding import make_mesh

CONFIG = ModelConfig(
    vocab_size=41,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_position=64,
)
KNOBS = TrainingKnobs.of(
    FinetuneKnobs(
        epochs=2.0,
        sequence_length=32,
        batch_rows=4,
        learning_rate=1e-2,
        warmup_steps=2,
        clip_norm=1.0,
        remat="none",
        dtype="float32",
        validate_every=4,
        save_every=3,
    )
)
ONE = make_mesh(MeshKnobs(), jax.devices()[:1])


def example(number: int, seed: int = 0) -> Example:
    """An example of 2 to 20 tokens; every third one weights its tokens."""
    rng = np.random.default_rng([seed, number])
    prompt = rng.integers(0, CONFIG.vocab_size, rng.integers(1, 10))
    completion = rng.integers(0, CONFIG.vocab_size, rng.integers(1, 11))
    weights = None
    if number % 3 == 0:
        weights = tuple(float(w) for w in rng.integers(1, 4, len(completion)))
    return Example(
        id=f"e{number}",
        prompt_ids=tuple(map(int, prompt)),
        completion_ids=tuple(map(int, completion)),
        weights=weights,
    )


EXAMPLES = [example(number) for number in range(56)]


def small_model(config: ModelConfig = CONFIG, seed: int = 0, **dtypes: Any) -> Decoder:
    """A model of random weights, drawn by numpy: there is nothing to compile."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(abstract_decoder(config, **dtypes))
    return nnx.merge(
        graph,
        jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), state),
    )


def arrays_of(model: Decoder) -> dict[str, np.ndarray]:
    """The parameters as they are now."""
    return {path: np.array(value) for path, value in parameters_of(model).items()}


class Trained:
    """A fine-tuning whose every callback can be looked at; it keeps the best model's arrays."""

    def __init__(self, root: epath.Path, **knobs: Any) -> None:
        self.root = root
        self.knobs = dataclasses.replace(KNOBS, **knobs)
        self.kept: tuple[int, dict[str, np.ndarray]] | None = None
        self.measured: list[int] = []
        self.logged: list[dict[str, Any]] = []
        self.accuracy: Callable[[int], float | None] = lambda step: step / 100
        self.stop: Callable[[], bool] = lambda: False
        self.examples: Sequence[Unit] = EXAMPLES
        self.objective: Objective | None = None
        self.let_go = False
        self.start: dict[str, Any] | None = None
        self.mesh = ONE
        self.model: Decoder | None = None
        self.log: Callable[[dict[str, Any]], None] = self.logged.append

    def validate(self, model: Decoder, step: int, release: Callable[[], None]) -> dict[str, Any]:
        if self.let_go:
            release()
        self.measured.append(step)
        return {"accuracy": self.accuracy(step)}

    def save_model(self, model: Decoder, step: int, metrics: dict[str, Any]) -> None:
        self.kept = (step, arrays_of(model))

    def run(self) -> FinetuneResult:
        """Begins, or goes on after whatever stopped it."""
        return finetune(
            model=self.model or small_model(),
            source=self.source(),
            knobs=self.knobs,
            seed=3,
            mesh=self.mesh,
            state_dir=self.root / "state",
            callbacks=Callbacks(
                validate=self.validate,
                save_model=self.save_model,
                log=self.log,
                stop_requested=lambda: self.stop(),
            ),
            start=self.start,
        )

    def source(self) -> BatchSource:
        """Where its rows come from."""
        return PlannedRows(self.examples, self.knobs, seed=3, objective=self.objective)
