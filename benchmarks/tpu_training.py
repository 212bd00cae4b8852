"""What does a training step of a 70B and an 8B Llama cost on a TPU slice?

Part of `benchmarks/tpu_aot.py`, which prints it: the step is the training loop's own, compiled by
libtpu for a slice that is not here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.shapes import published
from ste_jax.config.schema import FinetuneKnobs, MeshKnobs
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.train_step import make_train_step, step_flops
from ste_jax.models.config import ModelConfig
from ste_jax.planning.compile import chip_of, compile_for, topology_mesh
from ste_jax.planning.config_memory import half_masked

LENGTH = 4096
FORWARD, BACKWARD = 2, 7
"""Products of a block of scores in splash attention: forward; and for the gradients, scores and the
gradient of the weights twice (for queries, and for keys and values), and one for each of the
three."""


@dataclass(frozen=True)
class TrainingCase:
    """A model on a slice; the first half of every row is masked."""

    model: str
    topology: str
    rows: int
    axes: MeshKnobs

    @property
    def knobs(self) -> TrainingKnobs:
        """Of its steps."""
        return TrainingKnobs.of(
            FinetuneKnobs(
                sequence_length=LENGTH,
                batch_rows=self.rows,
                remat="layer",
                param_dtype="float32",
                dtype="bfloat16",
            )
        )

    @property
    def mesh(self) -> str:
        """Its axes above 1."""
        sizes = dataclasses.asdict(self.axes)
        return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)


TRAINING_CASES = (
    TrainingCase("Llama-3.1-70B", "v5p:4x4x4", 64, MeshKnobs(fsdp=64)),
    TrainingCase("Llama-3.1-70B", "v5p:4x4x4", 64, MeshKnobs(fsdp=32, tensor=2)),
    TrainingCase("Llama-3.1-8B", "v5e:4x8", 32, MeshKnobs(fsdp=32)),
)


def kernel_flops(config: ModelConfig, knobs: TrainingKnobs, rows: int) -> float:
    """FLOPs of attention, which the kernel declares nothing of: whole blocks that hold a place a
    query may see; forward twice where layers are computed again."""
    block = 512
    blocks = knobs.sequence_length // block
    seen = block * block * blocks * (blocks + 1) / 2
    products = FORWARD * (2 if knobs.remat == "layer" else 1) + BACKWARD
    heads = config.num_heads * config.num_layers
    return 2 * products * seen * config.head_dim * heads * rows


def measure_training(case: TrainingCase) -> dict[str, Any]:
    """A case's figures, per chip."""
    config, knobs = published(case.model), case.knobs
    mesh = topology_mesh(case.topology, case.axes)
    chip, rows = chip_of(mesh), half_masked(knobs)
    step = make_train_step(config, knobs, 100, mesh, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    program = compile_for(step.lower(rows, knobs.accumulate, {}), mesh)
    cost = program.cost()
    if '"cost_estimate"' not in program.text:
        cost.flops += kernel_flops(config, knobs, knobs.batch_rows) / mesh.size
    tokens = int(np.count_nonzero(rows.segment_ids))
    model = 6 * config.parameter_count() * tokens / mesh.size
    return {
        "model": case.model,
        "topology": case.topology,
        "mesh": case.mesh,
        "chip": chip.name,
        "hbm_bytes": chip.hbm_bytes,
        "bytes_needed": program.bytes,
        "temporary_bytes": program.temporary_bytes,
        "step_hbm_bytes": cost.hbm_bytes,
        "flops": cost.flops,
        "six_n_d": model,
        "flops_ratio": cost.flops / model,
        "model_flops": step_flops(config, rows) / mesh.size,
        "sent": program.sent(cost),
        "roofline_seconds": {
            "hbm": cost.hbm_bytes / chip.hbm_bandwidth,
            "flops": cost.flops / chip.flops,
            "interconnect": sum(cost.sent.values()) / (chip.ici_bandwidth / 2),
        },
        "tokens": tokens,
    }


def training_failures(found: dict[str, Any]) -> list[str]:
    """The claims that a case's figures do not bear out."""
    program = f"{found['model']} on {found['topology']}, {found['mesh']}"
    if found["bytes_needed"] > found["hbm_bytes"]:
        return [f"{program}: a training step needs more memory than a chip has"]
    if found["flops"] < found["model_flops"]:
        return [f"{program}: fewer FLOPs than the model's own were counted: the count is wrong"]
    return []


def training_rows(found: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The table: a line for each figure, a column for each case."""
    columns = {f"{one['model']}, {one['topology']}, {one['mesh']}": one for one in found}

    def line(name: str, value: Any) -> dict[str, str]:
        return {"": name, **{head: value(one) for head, one in columns.items()}}

    return [
        line(
            "memory of a chip",
            lambda one: f"{one['bytes_needed'] / 1e9:.2f} GB of {one['hbm_bytes'] / 1e9:.0f}",
        ),
        line("HBM read and written", lambda one: f"{one['step_hbm_bytes'] / 1e9:.1f} GB"),
        line(
            "FLOPs",
            lambda one: (
                f"{one['flops'] / 1e12:.1f} T, 6ND {one['six_n_d'] / 1e12:.1f}: "
                f"**{one['flops_ratio']:.3f}**"
            ),
        ),
        line("the model's own FLOPs", lambda one: f"{one['model_flops'] / 1e12:.1f} T"),
        line(
            "sent along",
            lambda one: ", ".join(
                f"{axes} {count / 1e9:.2f} GB" for axes, count in one["sent"].items()
            ),
        ),
        line(
            "at the chip's peaks (predicted)",
            lambda one: ", ".join(
                f"{resource} {value:.2f} s" for resource, value in one["roofline_seconds"].items()
            ),
        ),
    ]


def training_caption() -> str:
    """What the table is of."""
    totals = "; ".join(
        dict.fromkeys(f"{case.model}: {case.knobs.batch_rows} rows" for case in TRAINING_CASES)
    )
    return (
        f"A training step, per chip, compiled ahead of time, nothing run. Rows of {LENGTH} tokens, "
        f"the first half masked ({totals}); parameters and both moments in float32, products in "
        "bfloat16, layers computed again in the backward pass. 6ND counts no attention, no second "
        "computation, and the output matrix at every token."
    )
