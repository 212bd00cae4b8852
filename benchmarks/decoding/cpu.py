"""Where does the time go on CPU, of a decoding step and of a piece of a prompt?

`python -m benchmarks.decoding.cpu --workload A|B` runs the engine's own programs on random weights
under the profiler and prints milliseconds: of each matrix product, beside it what that product
takes alone (`limit.py`, in the same process), and of everything else by where it stands in the
program. What XLA runs at once counts twice, and a product that it has rewritten has no name.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import time
from collections.abc import Callable, Iterator
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
from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding.decode_round import empty_control
from ste_jax.decoding.programs import Programs
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.parallel.sharding import make_mesh
from ste_jax.reporting.tables import markdown

RUNS = 3
SMALLEST = 0.1
"""How many milliseconds a line of the table must have; what takes less is summed."""

Row = dict[str, Any]

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
        elif instruction := _INSTRUCTION.match(line):
            name, kind = instruction.groups()
            if kind == "dot":
                products |= {name, computation}
            called, where = _CALLED.search(line), _WHERE.search(line)
            *path, primitive = where[1].split("/") if where else ["no name"]
            scopes = [part for part in path if not _NO_SCOPE.match(part)]
            found.append((name, "/".join(scopes[:2]) or primitive, called[1] if called else name))
    for name, place, computed_by in found:
        yield name, place, name in products or computed_by in products


def step_profile(config: ModelConfig, work: Workload) -> tuple[float, list[Row]]:
    """A decoding step's milliseconds without the profiler, and the table of those with it."""
    knobs, programs = _programs(config, work)
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

    def run() -> Any:
        nonlocal pasts
        pasts, tokens, _ = programs.decode(pasts=pasts, **given)
        return tokens

    return _profile(text, run, knobs.steps_per_round, limit.of_a_step(config, work, knobs))


def piece_profile(config: ModelConfig, work: Workload) -> tuple[float, list[Row]]:
    """The milliseconds of the last piece of the longest prompt, in the form of those of a step."""
    knobs, programs = _programs(config, work)
    bucket, chunk = knobs.prompt_buckets[-1], knobs.prefill_chunk
    buffer = programs.buffer(bucket)
    given = {"tokens": np.ones((1, chunk), np.int32), "start": np.int32(bucket - chunk)}
    text = programs.lower("prefill", buffer=buffer, **given).compile().as_text()

    def run() -> Any:
        nonlocal buffer
        buffer, _ = programs.prefill(buffer=buffer, **given)
        return buffer

    return _profile(text, run, 1, limit.of_a_piece(config, work, knobs))


def _programs(config: ModelConfig, work: Workload) -> tuple[DecodingKnobs, Programs]:
    """The engine's programs of random weights, and the shapes that it would give them."""
    knobs = knobs_for(work, SLOTS)
    programs = Programs(
        Decoder(config, rngs=nnx.Rngs(0), dtype=jnp.float32),
        make_mesh(MeshKnobs(), jax.devices()[:1]),
        dtype=knobs.dtype,
        chunk=knobs.prefill_chunk,
        steps=knobs.steps_per_round,
        as_list=True,
    )
    return knobs, programs


def _profile(
    text: str, run: Callable[[], Any], per_run: int, alone: dict[str, float]
) -> tuple[float, list[Row]]:
    """Of what `run` does `per_run` times with the program of this text."""
    seconds = []

    def runs() -> None:
        for _ in range(RUNS):
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - began)

    runs()
    plain = min(seconds[1:]) / per_run
    of = {name: (place, product) for name, place, product in places(text)}
    products: dict[str, float] = collections.Counter()
    others: dict[str, float] = collections.Counter()
    for event in traced.events(runs):
        if event.get("ph") == "X" and event["name"] in of:
            place, product = of[event["name"]]
            (products if product else others)[place] += event["dur"] * 1e-3 / (RUNS * per_run)
    milliseconds = {name: 1e3 * value for name, value in alone.items()}
    return plain * 1e3, list(_rows(products, others, milliseconds))


def _rows(
    products: dict[str, float], others: dict[str, float], alone: dict[str, float]
) -> Iterator[Row]:
    names = {*products, *others, *alone}
    total = {name: products.get(name, 0) + others.get(name, 0) for name in names}
    small = [name for name in total if total[name] < SMALLEST and name not in alone]
    for name in sorted(total.keys() - small, key=lambda name: -total[name]):
        yield _row(name, products.get(name), alone.get(name), others.get(name))
    less = (sum(of.get(name, 0) for name in small) for of in (products, alone, others))
    yield _row("what takes less", *less)
    yield _row("all", *(sum(of.values()) for of in (products, alone, others)))


def _row(name: str, *milliseconds: float | None) -> Row:
    return dict(
        zip(("milliseconds of", "products", "alone", "around"), (name, *milliseconds), strict=True)
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=("A", "B"), required=True)
    work = {"A": workload_a, "B": workload_b}[parser.parse_args().workload]()
    for title, profile in (
        (f"A step of {SLOTS} rows", step_profile),
        (f"The last piece of a prompt of {work.longest} tokens", piece_profile),
    ):
        plain, rows = profile(LLAMA_135M, work)
        lines = [
            {name: f"{one:.1f}" if isinstance(one, float) else one for name, one in row.items()}
            for row in rows
        ]
        print(f"{title} takes {plain:.1f} ms; under the profiler:\n\n{markdown(lines)}\n")


if __name__ == "__main__":
    main()
