"""How fast is this project's engine, and how fast could it be?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.decoding import limit
from benchmarks.decoding.work import Timed, Workload, draw, engine_for, knobs_for
from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.load_weights import load_weights, open_weights
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system import compilation_cache

SLOTS = 64


def run(directory: Path, work: Workload) -> Timed:
    """The work, with the model of a Hugging Face directory, after a warm-up of the same shapes."""
    compilation_cache.enable()
    kind = "float32"
    model = load_weights(directory, make_mesh(MeshKnobs()), dtype=kind, param_dtype=kind)
    engine = engine_for(model, work, SLOTS)
    draw(engine, work.warm_up())
    return draw(engine, work)


def measure(directory: Path, work: Workload) -> tuple[Timed, dict[str, Any]]:
    """The work, and how near it is to its limit, whose products are timed before and after it."""
    if work.eos_ids:  # nobody knows how many steps there must be
        return run(directory, work), {}
    config, knobs = open_weights(directory).config, knobs_for(work, SLOTS)
    before = limit.seconds(config, work, knobs)
    timed = run(directory, work)
    after = limit.seconds(config, work, knobs)
    parts = {part: min(before[part], after[part]) for part in before}
    least = sum(parts.values())
    return timed, {"limit, seconds": {**parts, "sum": least}, "of the limit": least / timed.seconds}
