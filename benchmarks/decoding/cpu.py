"""Where does the time of a decoding step go on CPU?

`python -m benchmarks.decoding.cpu --workload A|B` runs the engine's own program on random weights
under the profiler and prints milliseconds per step: of each matrix product, and beside it what that
product takes alone (`limit.py`, in the same process), and of everything else by where it stands in
the program. What XLA runs at once counts twice.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.decoding import limit, traced
from benchmarks.decoding.ours import SLOTS
from benchmarks.decoding.work import LLAMA_135M, Workload, knobs_for, workload_a, workload_b
from ste_jax.config import MeshKnobs
from ste_jax.decoding.engine import empty_control
from ste_jax.decoding.programs import Programs
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.reporting.tables import markdown
from ste_jax.sharding import make_mesh

ROUNDS = 3
SMALLEST = 0.1
"""Milliseconds per step of which a line is told; what takes less is summed."""

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = \S+ ([\w\-]+)\(")
_CALLED = re.compile(r"calls=%?([\w.\-]+)")
_WHERE = re.compile(r'op_name="([^"]*)"')
_NO_SCOPE = re.compile(r"^(while|body|cond|closed_call|branch_\d+_fun|.*\(.*\)|.*->.*)$")


def places(text: str) -> Iterator[tuple[str, str, bool]]:
    """Of each instruction of a compiled program: its name, where it stands by the program's named
    scopes, else its primitive, and whether it is or holds a matrix product."""
    products = set()
    found = []
    computation = ""
    for line in text.splitlines():
        if begun := _COMPUTATION.match(line):
            computation = begun[1]
        elif told := _INSTRUCTION.match(line):
            name, kind = told.groups()
            if kind == "dot":
                products |= {name, computation}
            called, where = _CALLED.search(line), _WHERE.search(line)
            *path, primitive = where[1].split("/") if where else [kind]
            scopes = [part for part in path if not _NO_SCOPE.match(part)]
            found.append((name, "/".join(scopes[:2]) or primitive, called[1] if called else name))
    for name, place, computed_by in found:
        yield name, place, name in products or computed_by in products


def profile(config: ModelConfig, work: Workload) -> tuple[float, list[dict[str, Any]]]:
    """Milliseconds of a step without the profiler; and rows of a table of what it spends with it:
    on products, on these alone, on what stands around them."""
    knobs = knobs_for(work, SLOTS)
    model = Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.float32)
    programs = Programs(
        model,
        make_mesh(MeshKnobs(), jax.devices()[:1]),
        dtype=knobs.dtype,
        chunk=knobs.prefill_chunk,
        steps=knobs.steps_per_round,
        as_list=True,
    )
    control = empty_control(knobs.groups, knobs.group_size)
    control.active[:] = True
    control.filled[:] = work.new_tokens // 2
    control.budget[:] = work.new_tokens + knobs.steps_per_round  # nobody ends
    control.prefix_length[:] = work.longest
    control.temperature[:] = work.temperature
    control.top_p[:] = work.top_p
    control.sample[:] = np.arange(control.sample.size).reshape(control.sample.shape)
    given = {
        "prefix": programs.prefix(knobs.groups, knobs.prompt_buckets[-1]),
        "control": control,
        "eos_ids": np.zeros(0, np.int32),
    }
    pasts = programs.pasts(knobs.groups, knobs.group_size, work.new_tokens)
    text = programs.lower("decode", pasts=pasts, **given).compile().as_text()
    seconds = []

    def rounds() -> None:
        nonlocal pasts
        for _ in range(ROUNDS):
            began = time.perf_counter()
            pasts, tokens, _ = programs.decode(pasts=pasts, **given)
            jax.block_until_ready(tokens)
            seconds.append(time.perf_counter() - began)

    rounds()
    plain = min(seconds) / knobs.steps_per_round
    of = {name: (place, product) for name, place, product in places(text)}
    products: dict[str, float] = collections.Counter()
    others: dict[str, float] = collections.Counter()
    each = 1e-3 / (ROUNDS * knobs.steps_per_round)
    for event in traced.events(rounds):
        if event.get("ph") == "X" and event["name"] in of:
            place, product = of[event["name"]]
            (products if product else others)[place] += event["dur"] * each
    alone = {name: 1e3 * value for name, value in limit.of_a_step(config, work, knobs).items()}
    return plain * 1e3, list(_rows(products, others, alone))


def _rows(
    products: dict[str, float], others: dict[str, float], alone: dict[str, float]
) -> Iterator[dict[str, Any]]:
    total = {name: products.get(name, 0) + others.get(name, 0) for name in {*products, *others}}
    small = [name for name in total if total[name] < SMALLEST and name not in alone]
    for name in sorted(total.keys() - small, key=lambda name: -total[name]):
        yield _row(name, products.get(name), alone.get(name), others.get(name))
    less = (sum(of.get(name, 0) for name in small) for of in (products, alone, others))
    yield _row("what takes less", *less)
    yield _row("all", *(sum(of.values()) for of in (products, alone, others)))


def _row(name: str, *milliseconds: float | None) -> dict[str, Any]:
    return dict(
        zip(("milliseconds of", "products", "alone", "around"), (name, *milliseconds), strict=True)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=("A", "B"), required=True)
    work = {"A": workload_a, "B": workload_b}[parser.parse_args().workload]()
    step, rows = profile(LLAMA_135M, work)
    told = [
        {name: f"{one:.1f}" if isinstance(one, float) else one for name, one in row.items()}
        for row in rows
    ]
    print(f"A step of {SLOTS} rows takes {step:.1f} ms; under the profiler:\n\n{markdown(told)}")


if __name__ == "__main__":
    main()
