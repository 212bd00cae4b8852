"""How fast is this project's engine, and how fast could it be?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoding import limit
from benchmarks.decoding.work import Timed, Workload
from ste_jax import compilation_cache
from ste_jax.config import DecodingKnobs, MeshKnobs
from ste_jax.decoding.engine import Engine
from ste_jax.decoding.rows import Prompt
from ste_jax.generators.protocol import Request, Sampling
from ste_jax.models.decoder import Decoder
from ste_jax.models.load import load_weights
from ste_jax.sharding import make_mesh


class NoText:
    """No text is made of the tokens."""

    def __init__(self, eos_ids: tuple[int, ...]) -> None:
        self.eos_ids = eos_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Nothing."""
        del ids
        return ""


def knobs_for(work: Workload, slots: int, dtype: str = "float32") -> DecodingKnobs:
    """The shapes that a user would choose for this work."""
    chunk = 256
    return DecodingKnobs(
        prompt_buckets=(-(-work.longest // chunk) * chunk,),
        new_buckets=(work.new_tokens,),
        groups=max(1, slots // work.samples),
        group_size=work.samples,
        prefill_chunk=chunk,
        steps_per_round=32,
        cache_tokens=0,
        dtype=dtype,
    )


def draw(engine: Engine, work: Workload) -> Timed:
    """Does the work."""
    sampling = Sampling(
        max_new_tokens=work.new_tokens,
        temperature=work.temperature,
        top_p=work.top_p,
        ignore_eos=not work.eos_ids,
    )
    usage = engine.usage
    before = (usage.prefill_seconds, usage.seconds, usage.busy_slot_steps, usage.slot_steps)
    ids: list[list[list[int]]] = [[[] for _ in range(work.samples)] for _ in work.prompts]
    began = time.perf_counter()
    for index, tokens in enumerate(work.prompts):
        request = Request(
            id=str(index), messages=(), sampling=sampling, samples=range(work.samples)
        )
        engine.submit(request, Prompt(tokens))
    for one in engine.completions():
        assert not one.error, one.error
        ids[int(one.request_id)][one.sample] = list(one.token_ids)
    seconds = time.perf_counter() - began
    for index in range(len(work.prompts)):
        engine.release(str(index))
    after = (usage.prefill_seconds, usage.seconds, usage.busy_slot_steps, usage.slot_steps)
    prefill, whole, busy, steps = np.subtract(after, before)
    return Timed(
        name="ste_jax",
        seconds=seconds,
        new_tokens=sum(len(sample) for of_prompt in ids for sample in of_prompt),
        ids=ids,
        told={"prefill share": float(prefill / whole), "slot occupancy": float(busy / steps)},
    )


def load(directory: Path, dtype: str = "float32") -> Decoder:
    """The model of a Hugging Face directory or a GGUF file."""
    return load_weights(directory, make_mesh(MeshKnobs()), dtype=dtype, param_dtype=dtype)


def run(directory: Path, work: Workload, slots: int = 64) -> Timed:
    """The work, after a warm-up of the same shapes."""
    compilation_cache.enable()
    engine = Engine(load(directory), NoText(work.eos_ids), knobs_for(work, slots))
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
