"""How fast does this project train?"""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from typing import Any

import jax
from etils import epath
from flax import nnx

from benchmarks.training.work import Training
from ste_jax.config.schema import MeshKnobs
from ste_jax.finetuning import packing
from ste_jax.finetuning.batch_source import PlannedRows
from ste_jax.finetuning.loop import Callbacks, finetune
from ste_jax.finetuning.train_step import (
    abstract_state,
    initial_state,
    make_train_step,
    put_batch,
    step_flops,
)
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system import compilation_cache
from ste_jax.system.hardware import PEAK_FLOPS


def peak_bytes() -> int:
    """The most memory that this process has held: of its devices where they tell, else its own."""
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(own if peak is None else peak)


def random_model(work: Training) -> Decoder:
    """Random weights of the shape, drawn on the devices."""

    @jax.jit
    def draw() -> Any:
        model = Decoder(work.config, rngs=nnx.Rngs(0), param_dtype=work.dtype)
        return nnx.state(model)

    blank = nnx.eval_shape(lambda: Decoder(work.config, rngs=nnx.Rngs(0), param_dtype=work.dtype))
    graph, _ = nnx.split(blank)
    model: Decoder = nnx.merge(graph, draw())
    model.dtype = jax.numpy.dtype(work.dtype)
    return model


def run(work: Training) -> dict[str, Any]:
    """Tokens per second of the steps after the first."""
    compilation_cache.enable()
    mesh, knobs, examples = make_mesh(MeshKnobs(), jax.devices()[:1]), work.knobs(), work.examples()
    plan = packing.plan(examples, knobs, seed=0)
    total = len(plan.steps)
    model = random_model(work)
    kinds = {"param_dtype": model.embed.get_value().dtype}
    abstract = abstract_state(work.config, knobs, total, mesh, **kinds)
    state = initial_state(parameters_of(model), abstract, knobs, total)
    step = make_train_step(work.config, knobs, total, mesh, dtype=model.dtype, **kinds)
    seconds, losses = [], []
    for members in plan.steps:
        rows = packing.fill(
            members,
            examples,
            count=work.rows,
            sequence_length=work.length,
            targets_per_row=plan.targets_per_row,
        )
        began = time.perf_counter()
        state, metrics = step(state, put_batch(rows, knobs.accumulate, mesh), {})
        losses.append(float(metrics.loss))
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    timed = seconds[1:]
    found = {
        "name": "ste_jax",
        "tokens/s": work.tokens * len(timed) / sum(timed),
        "seconds of the steps": timed,
        "losses": losses,
        "peak bytes": peak_bytes(),
        "model FLOPs of a step": step_flops(work.config, rows),
    }
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    if peak is not None:
        found["mfu"] = found["model FLOPs of a step"] / (sum(timed) / len(timed)) / peak
    return found


def run_saves(work: Training, save_every: int) -> dict[str, Any]:
    """Seconds of the steps after the first, by the training loop: with a save of the state after
    every `save_every`, the last of them written out; with 0, as if nothing were ever saved."""
    compilation_cache.enable()
    knobs = dataclasses.replace(work.knobs(), save_every=save_every or 10**9)
    begun: list[float] = []

    def log(event: dict[str, Any]) -> None:
        begun.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as place:
        finetune(
            model=random_model(work),
            source=PlannedRows(work.examples(), knobs, seed=0),
            knobs=knobs,
            seed=0,
            mesh=make_mesh(MeshKnobs(), jax.devices()[:1]),
            state_dir=epath.Path(place),
            callbacks=Callbacks(
                validate=lambda model, step, release: {"accuracy": None},
                save_model=lambda model, step, metrics: None,
                log=log,
                stop_requested=lambda: False,
            ),
        )
        ended = time.perf_counter()
    # Without saves the end is that of the last step: the loop saves before its last validation.
    return {"steps": len(begun), "seconds": (ended if save_every else begun[-1]) - begun[0]}
