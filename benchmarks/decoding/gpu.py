"""How near does decoding on one GPU come to reading the memory once per step?

The floor of a decoding step is the time in which the card's memory gives what must be read: every
weight once (of an embedding that is not tied, a few rows), the keys and values of each prompt once
for all its samples, and those that each sample has so far, once.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.decoding import peers, traced
from benchmarks.decoding.work import (
    LLAMA_8B,
    Timed,
    Workload,
    draw,
    engine_for,
    workload_g,
)
from benchmarks.products import quickest
from ste_jax.decoding.engine import Engine
from ste_jax.model_io.hf import describe_config
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.system import compilation_cache

HBM = {"H100": 3.35e12, "H200": 4.8e12}
"""Bytes per second, by the data sheets of NVIDIA's SXM cards."""
ITEM = 2
"""Bytes of a bfloat16."""


def step_bytes(config: ModelConfig, work: Workload) -> float:
    """What must be read for one step of all samples, halfway through them."""
    weights = config.parameter_count()
    if not config.tie_embeddings:
        weights -= config.vocab_size * config.hidden_size
    token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    prompts = sum(map(len, work.prompts)) * token
    samples = len(work.prompts) * work.samples * work.new_tokens / 2 * token
    return ITEM * (weights + prompts + samples)


def bandwidth() -> float:
    """What this card's memory gives, by a copy of 4 GB: bytes read and written per second."""
    copy = jax.jit(lambda x: x + 1)
    x = jnp.zeros(2**30, jnp.float32)
    return 2 * x.nbytes / quickest(lambda: copy(x))


def random_engine(work: Workload) -> Engine:
    """An engine of random weights with a slot for every sample."""
    model = Decoder(LLAMA_8B, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    return engine_for(model, work, len(work.prompts) * work.samples, "bfloat16", chunk=512)


def measure(work: Workload) -> tuple[Timed, dict[str, Any]]:
    """The work on random weights, and how near it is to the floor."""
    compilation_cache.enable()
    card = jax.devices()[0].device_kind
    found: dict[str, Any] = {"card": card, "measured bandwidth, TB/s": bandwidth() / 1e12}
    engine = random_engine(work)
    draw(engine, work.warm_up())
    timed = draw(engine, work)
    step = timed.seconds * (1 - timed.details["prefill share"]) / work.new_tokens
    least = step_bytes(LLAMA_8B, work)
    found |= {"step, ms": step * 1e3, "a step must read, GB": least / 1e9}
    rates = {name: rate for name, rate in HBM.items() if name in card}
    rates["measured"] = found["measured bandwidth, TB/s"] * 1e12
    for name, rate in rates.items():
        found[f"of the floor ({name})"] = least / rate / step
    return timed, found


def run_transformers(work: Workload) -> Timed:
    """`transformers` on the same card and shape, random weights of its own."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = LlamaConfig.from_dict(describe_config(LLAMA_8B))
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).eval()
    return peers.time_transformers(model, work)


def kernels(work: Workload) -> list[list[Any]]:
    """Milliseconds per step of the kernels that take longest (name, ms, calls), the sum first."""
    engine = random_engine(work)
    short = dataclasses.replace(work, new_tokens=32)
    draw(engine, short)  # after which the prompts are there
    events = traced.events(lambda: draw(engine, short))
    device = {
        e["pid"] for e in events if e.get("name") == "process_name" and "GPU" in str(e["args"])
    }
    spent: dict[str, float] = collections.Counter()
    calls: dict[str, int] = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and event.get("pid") in device:
            spent[event["name"]] += event["dur"] / 1e3 / short.new_tokens
            calls[event["name"]] += 1
    order = sorted(spent, key=lambda name: -spent[name])[:25]
    rows = [[name[:90], round(spent[name], 3), calls[name] / short.new_tokens] for name in order]
    return [["all", round(sum(spent.values()), 3), sum(calls.values()) / short.new_tokens], *rows]


def main() -> None:
    """What takes the time (for whoever tunes it)."""
    for row in kernels(workload_g()):
        print(*row)


if __name__ == "__main__":
    main()
