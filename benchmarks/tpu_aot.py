"""What do the programs of a 70B and an 8B Llama cost on a TPU slice, and what at the least?

The programs are the engine's own, compiled by libtpu for a slice that is not here. Of one decode
step, on one chip, HBM bytes and FLOPs are counted as often as loops run and held against a floor:
every weight once, each group's prompt once, each sample's past once. The count itself is held
against programs without a loop over layers, of 2 and of 4 layers: what does not depend on the
depth, and so much for each layer. Of a training step see `benchmarks/tpu_training.py`.

Exit status: 0 when every claim holds, or where there is no libtpu; 1 when one does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.shapes import published
from benchmarks.tpu_training import (
    TRAINING_CASES,
    measure_training,
    training_caption,
    training_failures,
    training_rows,
)
from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding.decode_round import empty_control
from ste_jax.decoding.programs import Programs
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import abstract_decoder
from ste_jax.planning.compile import (
    HBM_ONLY,
    Compiled,
    chip_of,
    compile_for,
    missing_libtpu,
    topology_mesh,
)
from ste_jax.planning.hlo_cost import Cost, UnknownTripsError
from ste_jax.reporting.tables import markdown
from ste_jax.system.errors import SteError
from ste_jax.system.hardware import Chip

LIMIT = 1.3
"""Times the floor that a decode step may cost."""
DEPTHS = (2, 4)
WITHIN = 0.02
"""By how much of it the count may miss what the programs of `DEPTHS` say of the full depth."""
TRIES = 3
"""Draws that a step takes, a number that no program tells. With 128 samples and top_p 0.9, where
one draw in ten falls outside, the last one is done after 2.9 on average."""
HALVINGS = 31
"""Of the threshold of top_k, see `decoding.sampling`; no program tells it either, for where no row
has a top_k there are none."""
ITEM = 2
"""Bytes of a bfloat16."""


@dataclass(frozen=True)
class Case:
    """A model on a slice."""

    model: str
    """As `configs/models/published.yaml` names it."""
    topology: str
    knobs: DecodingKnobs


KNOBS = DecodingKnobs(
    prompt_buckets=(2048,),
    new_buckets=(256,),
    groups=8,
    group_size=16,
    prefill_chunk=512,
    mesh=MeshKnobs(fsdp=1, tensor=8),
)
"""Weights and heads divided over all chips: each chip then reads an eighth of the weights in a
step, and one of the 8 kv heads of every cache."""
CASES = (
    Case("Llama-3.1-70B", "v5p:2x2x2", KNOBS),
    Case("Llama-3.1-8B", "v5e:2x4", KNOBS),
)


class Slice:
    """The programs of a case's model at some depth, compiled."""

    def __init__(self, case: Case, config: ModelConfig, options: dict[str, Any] | None = None):
        self.case, self.config, self._options = case, config, options
        self.mesh = topology_mesh(case.topology, case.knobs.mesh)
        knobs = case.knobs
        self._programs = Programs(
            abstract_decoder(config),
            self.mesh,
            dtype=knobs.dtype,
            chunk=knobs.prefill_chunk,
            steps=knobs.steps_per_round,
            as_list=False,
        )

    def decode(self) -> Compiled:
        """A round of decoding steps."""
        knobs, programs = self.case.knobs, self._programs
        lowered = programs.lower(
            "decode",
            prefix=programs.prefix(knobs.groups, knobs.prompt_buckets[-1]),
            pasts=programs.pasts(knobs.groups, knobs.group_size, knobs.new_buckets[-1]),
            control=empty_control(knobs.groups, knobs.group_size),
            eos_ids=np.zeros(2, np.int32),
        )
        return compile_for(lowered, self.mesh, self._options)

    def prefill(self) -> Compiled:
        """A piece of a prompt."""
        knobs = self.case.knobs
        lowered = self._programs.lower(
            "prefill",
            buffer=self._programs.buffer(knobs.prompt_buckets[-1]),
            tokens=np.zeros((1, knobs.prefill_chunk), np.int32),
            start=np.int32(0),
        )
        return compile_for(lowered, self.mesh, self._options)

    def last_piece(self) -> tuple[Compiled, Cost]:
        """The program that computes a piece of a prompt, and its cost where the piece fills the
        prompt's bucket: every chunk before it is whole, so the kernel takes them all."""
        knobs, config, program = self.case.knobs, self.config, self.prefill()
        before = knobs.prompt_buckets[-1] // knobs.prefill_chunk - 1
        cost = program.cost((before, 0))
        if '"cost_estimate"' not in program.text:
            # Splash attention declares nothing of itself. Its products, of blocks that are whole:
            scores = knobs.prefill_chunk**2 * (before + 1) * config.num_heads * config.num_layers
            cost.flops += 4 * scores * config.head_dim / self.mesh.size
        return program, cost

    def decode_step(self) -> tuple[Compiled, Cost, dict[str, float]]:
        """The program, and its cost and what it sends by mesh axes, of one step of a round."""
        program = self.decode()
        steps = self.case.knobs.steps_per_round
        cost = program.cost((steps, HALVINGS, TRIES))
        sent = {axes: count / steps for axes, count in program.sent(cost).items()}
        return program, Cost(cost.flops / steps, cost.hbm_bytes / steps), sent


def without_loop(config: ModelConfig, layers: int) -> ModelConfig:
    """The same model, less deep and with each layer a kind of its own: what is scanned is the
    cycle of kinds, so its program has no loop over layers."""
    return dataclasses.replace(config, num_layers=layers, kinds=config.kinds * layers)


def decode_floor(config: ModelConfig, knobs: DecodingKnobs, chips: int) -> Cost:
    """What a decode step must cost a chip when prompts and pasts are full."""
    rows = knobs.groups * knobs.group_size
    prompt, new = knobs.prompt_buckets[-1], knobs.new_buckets[-1]
    # A look-up reads no more than its rows.
    looked_up = 0 if config.tie_embeddings else (config.vocab_size - rows) * config.hidden_size
    cached = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    numbers = config.parameter_count() - looked_up
    numbers += cached * (knobs.groups * prompt + rows * new)
    scores = rows * (prompt + new) * config.num_heads * config.head_dim * config.num_layers
    flops = rows * config.flops_per_token + 4 * scores
    return Cost(flops=flops / chips, hbm_bytes=ITEM * numbers / chips)


def measure(case: Case) -> tuple[dict[str, Any], list[str]]:
    """A case's figures, per chip, and the claims that fail."""
    config, knobs = published(case.model), case.knobs
    full = Slice(case, config)
    chip, chips = chip_of(full.mesh), full.mesh.size
    decode, step, sent = full.decode_step()
    prefill, piece = full.last_piece()
    floor = decode_floor(config, knobs, chips)
    found: dict[str, Any] = {
        "model": case.model,
        "topology": case.topology,
        "chip": chip.name,
        "mesh": {axis: size for axis, size in full.mesh.shape.items() if size > 1},
        "hbm_bytes": chip.hbm_bytes,
        "decode": {
            "bytes_needed": decode.bytes,
            "temporary_bytes": decode.temporary_bytes,
            "hbm_bytes": step.hbm_bytes,
            "hbm_floor": floor.hbm_bytes,
            "hbm_ratio": step.hbm_bytes / floor.hbm_bytes,
            "flops": step.flops,
            "flops_floor": floor.flops,
            "flops_ratio": step.flops / floor.flops,
            "sent": sent,
            "roofline_seconds": roofline(chip, step, sum(sent.values())),
        },
        "prefill": {
            "bytes_needed": prefill.bytes,
            "temporary_bytes": prefill.temporary_bytes,
            "hbm_bytes": piece.hbm_bytes,
            "flops": piece.flops,
            "flops_floor": knobs.prefill_chunk * config.flops_per_token / chips,
            "sent": prefill.sent(piece),
            "roofline_seconds": roofline(chip, piece, sum(piece.sent.values())),
        },
        "unrolled": check_of_the_count(case, config),
    }
    return found, failures(found)


def roofline(chip: Chip, cost: Cost, sent: float) -> dict[str, float]:
    """Seconds that a chip needs at its peak, by resource; a prediction, nothing is measured."""
    return {
        "hbm": cost.hbm_bytes / chip.hbm_bandwidth,
        "flops": cost.flops / chip.flops,
        # A ring uses the links of one axis of the torus at least, one direction of each.
        "interconnect": sent / (chip.ici_bandwidth / 2),
    }


def check_of_the_count(case: Case, config: ModelConfig) -> dict[str, float]:
    """The count of the program with a loop over layers, as a share of what programs without one
    say: 1 where they agree. In HBM alone, see `HBM_ONLY`."""

    def counted(config: ModelConfig) -> dict[str, float]:
        _, cost, sent = Slice(case, config, HBM_ONLY).decode_step()
        return {"hbm_bytes": cost.hbm_bytes, "flops": cost.flops, "sent": sum(sent.values())}

    few, more = (counted(without_loop(config, depth)) for depth in DEPTHS)
    looped = counted(config)
    shares = {}
    for name, value in looped.items():
        of_a_layer = (more[name] - few[name]) / (DEPTHS[1] - DEPTHS[0])
        shares[name] = value / (few[name] + (config.num_layers - DEPTHS[0]) * of_a_layer)
    return shares


def failures(found: dict[str, Any]) -> list[str]:
    """The claims that a case's figures do not bear out."""
    program = f"{found['model']} on {found['topology']}"
    failed = []
    for name in ("decode", "prefill"):
        if found[name]["bytes_needed"] > found["hbm_bytes"]:
            failed.append(f"{program}: {name} needs more memory than a chip has")
    for name in ("hbm_ratio", "flops_ratio"):
        ratio = found["decode"][name]
        if ratio < 1:
            failed.append(f"{program}: {name} {ratio:.3f} is below 1: the count is wrong")
        elif ratio > LIMIT:
            failed.append(f"{program}: {name} {ratio:.3f} is above {LIMIT}")
    for name, share in found["unrolled"].items():
        if abs(share - 1) > WITHIN:
            failed.append(f"{program}: {name} are {share:.3f} of what unrolled programs say")
    return failed


def rows(found: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The table: a line for each figure, a column for each case."""
    giga, columns = 1e9, {f"{one['model']}, {one['topology']}": one for one in found}

    def line(name: str, value: Any) -> dict[str, str]:
        return {"": name, **{head: value(one) for head, one in columns.items()}}

    def of_hbm(name: str) -> Any:
        return lambda one: (
            f"{one[name]['bytes_needed'] / giga:.2f} GB of {one['hbm_bytes'] / giga:.0f}"
        )

    def against(name: str, unit: float, sign: str) -> Any:
        return lambda one: (
            f"{one['decode'][name] / unit:.3f} {sign}, "
            f"floor {one['decode'][name.split('_')[0] + '_floor'] / unit:.3f}: "
            f"**{one['decode'][name.split('_')[0] + '_ratio']:.3f}**"
        )

    def of_a_piece(name: str, unit: float, sign: str) -> Any:
        return lambda one: f"{one['prefill'][name] / unit:.2f} {sign}"

    def sent(name: str) -> Any:
        return lambda one: ", ".join(
            f"{axes} {count / 1e6:.0f} MB" for axes, count in one[name]["sent"].items()
        )

    def seconds(name: str) -> Any:
        return lambda one: ", ".join(
            f"{resource} {1e3 * value:.2f} ms"
            for resource, value in one[name]["roofline_seconds"].items()
        )

    return [
        line("decode: memory of a chip", of_hbm("decode")),
        line("prefill: memory of a chip", of_hbm("prefill")),
        line("decode step: HBM", against("hbm_bytes", giga, "GB")),
        line("decode step: FLOPs", against("flops", 1e12, "T")),
        line("decode step: sent along", sent("decode")),
        line("decode step: at the chip's peaks (predicted)", seconds("decode")),
        line(
            "prefill, last piece: HBM", lambda one: f"{one['prefill']['hbm_bytes'] / giga:.2f} GB"
        ),
        line("prefill, last piece: FLOPs", of_a_piece("flops", 1e12, "T")),
        line("prefill, last piece: sent along", sent("prefill")),
        line("prefill, last piece: at the chip's peaks (predicted)", seconds("prefill")),
        line(
            "count / unrolled programs",
            lambda one: ", ".join(f"{name} {share:.3f}" for name, share in one["unrolled"].items()),
        ),
    ]


def caption(knobs: DecodingKnobs) -> str:
    """What the table is of."""
    return (
        f"Per chip, compiled ahead of time, nothing run. {knobs.groups} prompts of "
        f"{knobs.prompt_buckets[-1]} tokens, {knobs.group_size} samples of each, new tokens up to "
        f"{knobs.new_buckets[-1]}; {knobs.dtype}; weights and heads divided over all chips "
        f"(decoding.mesh: tensor={knobs.mesh.tensor}). A decode step is one of "
        f"{knobs.steps_per_round} of a round, which bears its share of what a round does once; "
        f"prompts and pasts are full; temperature, top_p and top_k all in force, {TRIES} draws. "
        f"A prefill piece is {knobs.prefill_chunk} tokens. The floor: each weight once (of the "
        f"embedding the rows looked up), each prompt once, each past once; FLOPs: matrix "
        f"products of {knobs.groups * knobs.group_size} rows and their attention. The count may "
        f"miss unrolled programs of {DEPTHS[0]} and {DEPTHS[1]} layers by {100 * WITHIN:.0f}%."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and the claims that fail; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all figures go")
    options = parser.parse_args(arguments)
    why = missing_libtpu()
    if why:
        print(f"skipped: {why}")
        return 0
    jax.config.update("jax_platforms", "cpu")
    found, failed, trained = [], [], []
    try:
        for case in CASES:
            figures, claims = measure(case)
            found.append(figures)
            failed += claims
        for training in TRAINING_CASES:
            trained.append(measure_training(training))
            failed += training_failures(trained[-1])
    except (SteError, UnknownTripsError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{caption(KNOBS)}\n\n{markdown(rows(found))}\n")
    print(f"{training_caption()}\n\n{markdown(training_rows(trained))}")
    if options.json:
        figures = {"decoding": found, "training": trained}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    for claim in failed:
        print(claim, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
