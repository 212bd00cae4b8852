"""How much memory does a config need on each chip of the slice or GPU that it is written for?

The programs of the config that need most are compiled for the slice: a round of decoding in each
shape that the recipe uses, a piece of a prompt, and a training step. What stays in memory beside a
program while it runs is reckoned from shapes, and so is a validation during training, in which the
training state and the engine are there together. Nothing is run.

No GPU can be compiled for here. In its place stands one TPU v5p chip, of which the programs are
compiled without its attention kernels: what is kept is the same, what a program needs beside it is
an estimate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding.decode_round import empty_control
from ste_jax.decoding.memory import Footprint, on_a_device
from ste_jax.decoding.programs import Programs
from ste_jax.decoding.shapes import Shape, choose_shape
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.lora import is_trained
from ste_jax.finetuning.packing import Example, Rows, fill
from ste_jax.finetuning.train_step import TrainStep, make_train_step
from ste_jax.models.config import Lora, ModelConfig
from ste_jax.models.decoder import abstract_decoder
from ste_jax.models.kernels import PLAIN
from ste_jax.parallel.sharding import make_mesh, parameter_sharding
from ste_jax.planning.compile import Compiled, compile_for, topology_mesh


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a config is written for: one host's chips, or a GPU."""

    title: str
    topology: str
    """What libtpu calls the slice, or the one whose chip stands for the GPU."""
    chips: int
    bytes: float
    """What programs may use of a chip's memory."""
    gpu: bool = False


DEVICES = {
    # Compiling fails above these: libtpu keeps a part of the 16 and 32 GiB to itself.
    "v5e-8": Device(title="TPU v5e-8", topology="v5e:2x4", chips=8, bytes=15.75 * 2**30),
    "v6e-8": Device(title="TPU v6e-8", topology="v6e:2x4", chips=8, bytes=31.25 * 2**30),
    # With XLA_PYTHON_CLIENT_MEM_FRACTION=0.92, of 80e9 bytes; without it JAX takes 75%.
    "gpu-80gb": Device(
        title="GPU of 80 GB", topology="v5p:2x2x1", chips=1, bytes=0.92 * 80e9, gpu=True
    ),
}
"""The end of a config's name -> its device."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a chip must hold while something runs."""

    what: str
    kept: float
    """Bytes of arrays that stay: weights, states, caches."""
    beside: float = 0.0
    """Bytes that the program needs beside them while it runs; only the compiler can tell."""

    def compiled_as(self, program: Compiled, others: float = 0.0) -> Need:
        """The same of the compiled program, whose arguments are kept, and `others` beside them. A
        program's arguments leave out weights that it does not read, which are kept nonetheless."""
        kept = max(self.kept, program.argument_bytes + others)
        return dataclasses.replace(self, kept=kept, beside=program.temporary_bytes)

    @property
    def bytes(self) -> float:
        """All of it."""
        return self.kept + self.beside


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run's engine and training are to be, and on which device."""

    model: ModelConfig
    decoding: DecodingKnobs
    """Its buckets are given."""
    training: TrainingKnobs
    training_axes: MeshKnobs
    judgment_tokens: int
    """The most new tokens of a judgment, of which several of a prompt are drawn."""
    answer_tokens: int
    """The most new tokens of what is drawn once of a prompt."""
    device: Device
    devices: Sequence[jax.Device] = ()
    """Any devices, where nothing is to be compiled; else those of the device's topology."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """The largest shapes that the recipe decodes in, by what is drawn.

        Raises:
          DoesNotFit: no bucket holds so many new tokens.
        """
        longest = self.decoding.prompt_buckets[-1]
        return {
            "judgments": choose_shape(self.decoding, longest, self.judgment_tokens),
            "answers": choose_shape(self.decoding, longest, self.answer_tokens, alone=True),
        }

    @cached_property
    def _devices(self) -> Sequence[jax.Device]:
        there = self.devices or topology_mesh(self.device.topology, MeshKnobs()).devices.flat
        return list(there)[: self.device.chips]

    @cached_property
    def decoding_mesh(self) -> Mesh:
        """The mesh of the engine."""
        return make_mesh(self.decoding.mesh, self._devices)

    @cached_property
    def training_mesh(self) -> Mesh:
        """The mesh of fine-tuning."""
        return make_mesh(self.training_axes, self._devices)

    def engine_keeps(self, shape: Shape) -> Footprint:
        """What the engine keeps on a chip."""
        return on_a_device(self.model, self.decoding, shape, self.decoding_mesh)

    def training_keeps(self) -> tuple[float, float]:
        """Bytes that a chip keeps through a training, and those of the merged model that LoRA makes
        for a validation."""
        step, fixed = self._step()
        kept = sum(map(_bytes_of, jax.tree.leaves((step.abstract, fixed))))
        lora = self._trained_model().lora
        merged = sum(
            _bytes_of(array)
            for path, array in fixed.items()
            if lora is not None and path.rpartition(".")[2] in lora.matrices
        )
        return kept, merged

    def needs(self, *, compiled: bool = True) -> Iterator[Need]:
        """What a chip holds while each program runs, one after another, since each takes a minute
        or so to compile; without `compiled`, what stays, from shapes alone."""
        for name, shape in self.shapes.items():
            keeps = self.engine_keeps(shape)
            others = keeps.buffer + keeps.store
            need = Need(what=f"decode {name}", kept=keeps.total)
            if compiled:
                need = need.compiled_as(self._compile(self._decode_round(shape)), others)
            yield need
            if name == "judgments":
                judging = need
        keeps = max(map(self.engine_keeps, self.shapes.values()), key=lambda each: each.total)
        need = Need(what="prefill", kept=keeps.total)
        if compiled:
            others = keeps.prefix + keeps.past + keeps.store
            need = need.compiled_as(self._compile(self._prompt_piece()), others)
        yield need
        kept, merged = self.training_keeps()
        need = Need(what="training step", kept=kept)
        if compiled:
            need = need.compiled_as(self._compile(self._training_step()))
        yield need
        if self.training.lora.rank:  # else the state waits on disk where both do not fit
            yield Need(what="validation", kept=kept + merged + judging.kept, beside=judging.beside)

    def _compile(self, lowered: jax.stages.Lowered) -> Compiled:
        return compile_for(lowered, self.training_mesh)

    def _programs(self) -> Programs:
        knobs = self.decoding
        return Programs(
            abstract_decoder(self.model),
            self.decoding_mesh,
            dtype=knobs.dtype,
            chunk=knobs.prefill_chunk,
            steps=knobs.steps_per_round,
            as_list=False,
            int8=knobs.weights == "int8",
            kernels=PLAIN if self.device.gpu else None,
        )

    def _decode_round(self, shape: Shape) -> jax.stages.Lowered:
        programs = self._programs()
        return programs.lower(
            "decode",
            prefix=programs.prefix(shape.groups, shape.prompt),
            pasts=programs.pasts(shape.groups, shape.rows, shape.new),
            control=empty_control(shape.groups, shape.rows),
            eos_ids=np.zeros(2, np.int32),
        )

    def _prompt_piece(self) -> jax.stages.Lowered:
        programs, knobs = self._programs(), self.decoding
        return programs.lower(
            "prefill",
            buffer=programs.buffer(knobs.prompt_buckets[-1]),
            tokens=np.zeros((1, knobs.prefill_chunk), np.int32),
            start=np.int32(0),
        )

    def _trained_model(self) -> ModelConfig:
        """The model's shape in training, with LoRA's matrices if there are any."""
        knobs = self.training.lora
        if not knobs.rank:
            return self.model
        there = {path.rpartition(".")[2] for path in self.model.parameters()}
        matrices = tuple(name for name in knobs.matrices if name in there)
        lora = Lora(rank=knobs.rank, alpha=knobs.alpha, matrices=matrices)
        return dataclasses.replace(self.model, lora=lora)

    def _step(self) -> tuple[TrainStep, dict[str, jax.ShapeDtypeStruct]]:
        """The training step, and the parameters that it leaves as they are."""
        knobs, model = self.training, self._trained_model()
        step = make_train_step(
            model,
            knobs,
            100,
            self.training_mesh,
            dtype=jnp.dtype(knobs.dtype),
            param_dtype=jnp.dtype(knobs.param_dtype),
            kernels=PLAIN if self.device.gpu else None,
        )
        fixed = {
            path: jax.ShapeDtypeStruct(
                one.shape,
                jnp.dtype(knobs.param_dtype),
                sharding=parameter_sharding(one.shape, one.axes, self.training_mesh),
            )
            for path, one in model.parameters().items()
            if not is_trained(model, path)
        }
        return step, fixed

    def _training_step(self) -> jax.stages.Lowered:
        knobs = self.training
        step, fixed = self._step()
        return step.lower(half_masked(knobs), knobs.accumulate, fixed)


def _bytes_of(array: Any) -> float:
    """Bytes of a device's part of an abstract array."""
    return float(math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize)


def half_masked(knobs: TrainingKnobs) -> Rows:
    """A step's rows: one example each, of which the first half is the prompt."""
    half = knobs.sequence_length // 2
    one = Example(id="0", prompt_ids=(1,) * half, completion_ids=(1,) * half)
    return fill(
        [[0]] * knobs.batch_rows,
        [one],
        count=knobs.batch_rows,
        sequence_length=knobs.sequence_length,
        targets_per_row=half,
    )
