"""How fast is this project's engine, and how fast could it be?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.decoding import limit
from benchmarks.decoding.work import Timed, Workload, draw, engine_for, knobs_for
from ste_jax import compilation_cache
from ste_jax.config import MeshKnobs
from ste_jax.models.decoder import Decoder
from ste_jax.models.load import load_weights
from ste_jax.sharding import make_mesh


def load(directory: Path, dtype: str = "float32") -> Decoder:
    """The model of a Hugging Face directory or a GGUF file."""
    return load_weights(directory, make_mesh(MeshKnobs()), dtype=dtype, param_dtype=dtype)


def run(directory: Path, work: Workload, slots: int = 64) -> Timed:
    """The work, after a warm-up of the same shapes."""
    compilation_cache.enable()
    engine = engine_for(load(directory), work, slots)
    draw(engine, work.warm_up())
    return draw(engine, work)


def measure(directory: Path, work: Workload, slots: int = 64) -> tuple[Timed, dict[str, Any]]:
    """The work, and how near it is to its limit, whose products are timed before and after it."""
    config = load(directory).config
    knobs = knobs_for(work, slots)
    before = limit.seconds(config, work, knobs)
    timed = run(directory, work, slots)
    after = limit.seconds(config, work, knobs)
    parts = {part: min(before[part], after[part]) for part in before}
    told = {"limit, seconds": {**parts, "sum": sum(parts.values())}}
    if not work.eos_ids:  # else nobody knows how many steps there must be
        told["of the limit"] = sum(parts.values()) / timed.seconds
    return timed, told
