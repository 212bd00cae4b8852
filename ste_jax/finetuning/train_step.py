"""What does one optimizer step compute?

Shapes: `A` micro-batches, `B` rows of each, `T` time, `C` targets per row.

The step is a pure function of a `TrainState` and a batch, jitted over the mesh. The loss of a step
is one mean over its whole batch, so that micro-batches of any number give the gradient of the batch
as one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ste_jax.finetuning.attention import packed_causal
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.lora import is_trained
from ste_jax.finetuning.loss import TargetScores, target_scores
from ste_jax.finetuning.objectives import Objective, Sft, Share, completion_logprobs
from ste_jax.finetuning.optimizer import learning_rate, make_optimizer
from ste_jax.finetuning.packing import Array, Rows
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder, abstract_decoder
from ste_jax.models.kernels import Kernels, kernels_of
from ste_jax.models.parameters import Parameters, with_parameters
from ste_jax.parallel.sharding import RULES, parameter_sharding
from ste_jax.system.errors import RequestError

Batch = dict[str, jax.Array]
"""The fields of `packing.Rows`, those of its objective among them, each [A,B,...], and `stop`
[devices] int32."""


class TrainState(NamedTuple):
    """All that a step reads and changes."""

    step: Any
    """int32 array: steps taken."""
    params: Any
    """`Parameters`, those that are trained; in an abstract state their shapes."""
    optimizer: Any
    """The optax state."""


class StepMetrics(NamedTuple):
    """What a step reports; scalars, the same on every process."""

    loss: jax.Array
    """The objective's loss before the update, in nats."""
    measures: dict[str, jax.Array]
    """The objective's measures by name. Every objective gives `token_accuracy`: the share of
    targets that have the highest logit."""
    grad_norm: jax.Array
    """Global norm before clipping."""
    learning_rate: jax.Array
    finite: jax.Array
    """Whether loss and gradient norm are finite."""
    stop: jax.Array
    """How many devices belong to a process that asks to stop after this step."""


def abstract_state(
    config: ModelConfig, knobs: TrainingKnobs, total_steps: int, mesh: Mesh, *, param_dtype: Any
) -> TrainState:
    """Shapes and shardings of a `TrainState`. Moments are sharded as their parameters; counters and
    sums over rows or columns of a parameter are whole on every device."""
    whole = NamedSharding(mesh, PartitionSpec())
    params = {
        path: jax.ShapeDtypeStruct(
            declared.shape,
            jnp.dtype(param_dtype),
            sharding=parameter_sharding(declared.shape, declared.axes, mesh),
        )
        for path, declared in config.parameters().items()
        if is_trained(config, path)
    }
    optimizer = make_optimizer(knobs, total_steps)

    def placed(moment: Any, param: Any) -> Any:
        return moment.update(sharding=param.sharding if moment.shape == param.shape else whole)

    moments = optax.tree.map_params(
        optimizer,
        placed,
        jax.eval_shape(optimizer.init, _wide(params)),
        params,
        transform_non_params=lambda counter: counter.update(sharding=whole),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(step=step, params=params, optimizer=moments)


def initial_state(
    params: Parameters, abstract: TrainState, knobs: TrainingKnobs, total_steps: int
) -> TrainState:
    """The state before the first step; it takes over the arrays of `params`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    optimizer = make_optimizer(knobs, total_steps)

    def zeros() -> Any:
        return jnp.zeros((), jnp.int32), optimizer.init(
            {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in abstract.params.items()}
        )

    step, moments = jax.jit(zeros, out_shardings=(shardings.step, shardings.optimizer))()
    return TrainState(step, jax.device_put(params, shardings.params), moments)


def check_batch(knobs: TrainingKnobs, mesh: Mesh) -> None:
    """Raises `RequestError` where a micro-batch's rows cannot be divided over the mesh."""
    rows = knobs.batch_rows // knobs.accumulate
    ways = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    if rows % ways:
        raise RequestError(
            f"{knobs.group}.batch_rows / {knobs.group}.accumulate = {rows} rows cannot be divided "
            f"over finetune.mesh {' x '.join(RULES['batch'])} = {ways}; make it a multiple"
        )


@dataclass(frozen=True)
class TrainStep:
    """A jitted step on its mesh. Its first argument is donated: the old state is gone after the
    call."""

    jitted: Any
    abstract: TrainState
    mesh: Mesh

    def __call__(
        self, state: TrainState, batch: Batch, fixed: Parameters
    ) -> tuple[TrainState, StepMetrics]:
        """`fixed` are the parameters that stay as they are."""
        with jax.set_mesh(self.mesh):
            out: tuple[TrainState, StepMetrics] = self.jitted(state, batch, fixed)
        return out

    def lower(self, rows: Rows, accumulate: int, fixed: Mapping[str, Any]) -> jax.stages.Lowered:
        """The program for a batch of these shapes, not compiled yet; nothing is on the devices."""
        each, divided = _batch_shardings(self.mesh)
        batch = {
            name: jax.ShapeDtypeStruct(
                (accumulate, value.shape[0] // accumulate, *value.shape[1:]),
                value.dtype,
                sharding=divided,
            )
            for name, value in rows.fields().items()
        }
        batch["stop"] = jax.ShapeDtypeStruct((self.mesh.size,), jnp.int32, sharding=each)
        with jax.set_mesh(self.mesh):
            lowered: jax.stages.Lowered = self.jitted.lower(self.abstract, batch, fixed)
        return lowered


def make_train_step(
    config: ModelConfig,
    knobs: TrainingKnobs,
    total_steps: int,
    mesh: Mesh,
    *,
    dtype: Any,
    param_dtype: Any,
    objective: Objective | None = None,
    seed: int = 0,
    kernels: Kernels | None = None,
) -> TrainStep:
    """The jitted step of a training with these knobs.

    `objective` is SFT where none is given; `seed` decides how parameters are rounded; `kernels` are
    those of the devices where none are given.

    Raises:
      RequestError: a micro-batch's rows cannot be divided over the mesh.
    """
    check_batch(knobs, mesh)
    optimizer = make_optimizer(knobs, total_steps)
    abstract = abstract_state(config, knobs, total_steps, mesh, param_dtype=param_dtype)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    blank = abstract_decoder(config, dtype=dtype, param_dtype=param_dtype)
    aim = objective or Sft()
    kernels = kernels or kernels_of(mesh.devices.flat[0])
    scores = partial(_scores_of, blank, kernels, remat=knobs.remat == "layer")

    def step(state: TrainState, batch: Batch, fixed: Parameters) -> tuple[TrainState, StepMetrics]:
        rows = {name: value for name, value in batch.items() if name != "stop"}
        totals = aim.totals(rows)

        def share(params: Parameters, micro: Batch) -> Share:
            return aim.share(scores(params | fixed, micro), micro, totals)

        grads, whole = _accumulated(share, state.params, rows, knobs.accumulate)
        norm = optax.tree.norm(grads)
        wide = jax.tree.map(lambda value: value.astype(jnp.float32), state.params)
        updates, moments = optimizer.update(grads, state.optimizer, wide)
        params = optax.apply_updates(wide, updates)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        params = _rounded(params, state.params, key if knobs.rounding == "stochastic" else None)
        metrics = StepMetrics(
            loss=whole.loss,
            measures=whole.measures,
            grad_norm=norm,
            learning_rate=learning_rate(knobs, total_steps, state.step),
            finite=jnp.isfinite(whole.loss) & jnp.isfinite(norm),
            stop=jnp.sum(batch["stop"]),
        )
        return TrainState(state.step + 1, params, moments), metrics

    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, None, None),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
    )
    return TrainStep(jitted, abstract, mesh)


def _rounded(params: Parameters, like: Parameters, key: jax.Array | None) -> Parameters:
    """Float32 `params` in the types of `like`: rounded stochastically with a key, else to the
    nearest."""
    if key is not None:
        params = {
            path: stochastically(value, like[path].dtype, jax.random.fold_in(key, place))
            for place, (path, value) in enumerate(sorted(params.items()))
        }
    return {path: value.astype(like[path].dtype) for path, value in params.items()}


def stochastically(value: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """Float32 `value` rounded to one of its two neighbours in bfloat16, more often to the nearer
    one, so that the mean is `value`. With another `dtype` it is returned as it is."""
    if dtype != jnp.bfloat16:
        return value
    noise = jax.random.bits(key, value.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32) + noise
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(value), rounded, value).astype(dtype)


Reference = Callable[[Parameters, Batch], tuple[jax.Array, jax.Array]]


def make_reference(
    config: ModelConfig, knobs: TrainingKnobs, mesh: Mesh, *, dtype: Any, param_dtype: Any
) -> Reference:
    """A jitted function that gives the log-probabilities [A,B,P,2] of the completions of a batch of
    preferences, and how many devices' process asks to stop; both are whole on every device.

    Raises:
      RequestError: a micro-batch's rows cannot be divided over the mesh.
    """
    check_batch(knobs, mesh)
    blank = abstract_decoder(config, dtype=dtype, param_dtype=param_dtype)
    kernels = kernels_of(mesh.devices.flat[0])

    def reference(params: Parameters, batch: Batch) -> tuple[jax.Array, jax.Array]:
        rows = {name: value for name, value in batch.items() if name != "stop"}

        def of_micro(micro: Batch) -> jax.Array:
            scores = _scores_of(blank, kernels, params, micro, remat=False)
            return completion_logprobs(scores, micro, micro["pair"].shape[1])

        return jax.lax.map(of_micro, rows), jnp.sum(batch["stop"])

    jitted = jax.jit(reference, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def run(params: Parameters, batch: Batch) -> tuple[jax.Array, jax.Array]:
        with jax.set_mesh(mesh):
            out: tuple[jax.Array, jax.Array] = jitted(params, batch)
        return out

    return run


def put_batch(rows: Rows, accumulate: int, mesh: Mesh, *, stop: bool = False) -> Batch:
    """Puts the rows of a step on the mesh, `accumulate` micro-batches of them, divided over the
    axes of a batch. Every process gives all rows and keeps its own; `stop` is as `stop_flags` has
    it."""
    _, divided = _batch_shardings(mesh)

    def put(value: Array) -> jax.Array:
        value = value.reshape(accumulate, -1, *value.shape[1:])
        return jax.make_array_from_callback(value.shape, divided, value.__getitem__)

    batch = {name: put(value) for name, value in rows.fields().items()}
    return {**batch, "stop": stop_flags(mesh, stop)}


def stop_flags(mesh: Mesh, stop: bool) -> jax.Array:
    """A batch's `stop`: 1 at each device of a process that asks to stop, so that all see it."""
    flags = np.full(mesh.devices.size, stop, np.int32)
    each, _ = _batch_shardings(mesh)
    return jax.make_array_from_callback(flags.shape, each, flags.__getitem__)


def _batch_shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Two shardings: of an array with one value for each device, and of fields [A,B,...], whose
    rows are divided over the axes of a batch."""
    return (
        NamedSharding(mesh, PartitionSpec(mesh.axis_names)),
        NamedSharding(mesh, PartitionSpec(None, RULES["batch"])),
    )


def step_flops(config: ModelConfig, rows: Rows) -> int:
    """Model FLOPs of a step: forward and backward of what it has to compute, no rematerialization.

    2 per matmul parameter and token in the layers, 2 per parameter of the output matrix and target,
    4 per head dimension and pair of tokens that see each other; the backward pass costs twice that,
    but for matrices that are not trained (LoRA), which have no gradient of their own.
    """
    head = config.vocab_size * config.hidden_size
    tokens = int(np.count_nonzero(rows.segment_ids))
    targets = int(np.count_nonzero(rows.weights))
    before = rows.positions.astype(np.int64)[rows.segment_ids > 0] + 1
    pairs = sum(
        int(np.sum(before if kind.window is None else np.minimum(before, kind.window)))
        for kind in map(config.kind_of, range(config.num_layers))
    )
    forward = (
        tokens * (config.flops_per_token - 2 * head)
        + targets * 2 * head
        + pairs * 4 * config.num_heads * config.head_dim
    )
    if config.lora is None:
        return 3 * forward
    large = dataclasses.replace(config, lora=None).flops_per_token
    held = tokens * (large - 2 * head) + targets * 2 * head
    return 3 * forward - held


def _wide(params: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in params.items()}


def _scores_of(
    blank: Decoder, kernels: Kernels, params: Parameters, micro: Batch, *, remat: bool
) -> TargetScores:
    """How likely the model of these parameters finds the targets of a micro-batch."""
    model = with_parameters(blank, params)
    attend = packed_causal(micro["segment_ids"], micro["positions"], kernels)
    hidden, _ = model(micro["tokens"], micro["positions"], attend, remat=remat)
    return target_scores(model.logits, hidden, micro["target_at"], micro["targets"])


def _accumulated(
    share: Callable[[Parameters, Batch], Share],
    params: Parameters,
    batch: Batch,
    accumulate: int,
) -> tuple[Parameters, Share]:
    """Gradient (float32) and the sum of the shares of all micro-batches."""

    def loss_of(params: Parameters, micro: Batch) -> tuple[jax.Array, Share]:
        out = share(params, micro)
        return out.loss, out

    def gradient(micro: Batch) -> tuple[Parameters, Share]:
        (_, out), grads = jax.value_and_grad(loss_of, has_aux=True)(params, micro)
        return jax.tree.map(lambda grad: grad.astype(jnp.float32), grads), out

    if accumulate == 1:
        return gradient({name: value[0] for name, value in batch.items()})
    like = jax.eval_shape(gradient, {name: value[0] for name, value in batch.items()})
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    summed: tuple[Parameters, Share]
    summed, _ = jax.lax.scan(
        lambda carry, micro: (jax.tree.map(jnp.add, carry, gradient(micro)), None), zeros, batch
    )
    return summed
