"""What does one optimizer step compute?

Shapes: `A` micro-batches, `B` rows of each, `T` time, `C` targets per row.

The step is a pure function of a `TrainState` and a batch, jitted over the mesh. The loss of a step
is one weighted mean over all targets of its whole batch, so that micro-batches of any number give
the gradient of the batch as one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ste_jax.config import FinetuneKnobs
from ste_jax.errors import RequestError
from ste_jax.finetuning.attention import packed_causal
from ste_jax.finetuning.lora import is_trained
from ste_jax.finetuning.loss import LossSums, completion_loss
from ste_jax.finetuning.optimizer import learning_rate, make_optimizer
from ste_jax.finetuning.packing import Rows
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import abstract_decoder
from ste_jax.parameters import Parameters, with_parameters
from ste_jax.sharding import RULES, parameter_sharding

Batch = dict[str, jax.Array]
"""The fields of `packing.Rows`, each [A,B,...], and `stop` [devices] int32."""


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
    """Weighted mean over the step's targets, nats, before the update."""
    token_accuracy: jax.Array
    """Share of the targets that have the highest logit."""
    grad_norm: jax.Array
    """Global norm before clipping."""
    learning_rate: jax.Array
    finite: jax.Array
    """Whether loss and gradient norm are."""
    stop: jax.Array
    """Devices whose process asks to stop after this step."""


TrainStep = Callable[[TrainState, Batch, Parameters], tuple[TrainState, StepMetrics]]
"""`step(state, batch, fixed)`: `fixed` are the parameters that stay as they are."""


def abstract_state(
    config: ModelConfig, knobs: FinetuneKnobs, total_steps: int, mesh: Mesh, *, param_dtype: Any
) -> TrainState:
    """Shapes and shardings of a `TrainState`: moments as their parameters, counters whole."""
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
    moments = optax.tree.map_params(
        optimizer,
        lambda moment, param: moment.update(sharding=param.sharding),
        jax.eval_shape(optimizer.init, _wide(params)),
        params,
        transform_non_params=lambda counter: counter.update(sharding=whole),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(step=step, params=params, optimizer=moments)


def initial_state(
    params: Parameters, abstract: TrainState, knobs: FinetuneKnobs, total_steps: int
) -> TrainState:
    """The state before the first step; `params` are taken over."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    optimizer = make_optimizer(knobs, total_steps)

    def zeros() -> Any:
        return jnp.zeros((), jnp.int32), optimizer.init(
            {path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in abstract.params.items()}
        )

    step, moments = jax.jit(zeros, out_shardings=(shardings.step, shardings.optimizer))()
    return TrainState(step, jax.device_put(params, shardings.params), moments)


def check_batch(knobs: FinetuneKnobs, mesh: Mesh) -> None:
    """Raises `RequestError` where a micro-batch's rows cannot be divided over the mesh."""
    rows = knobs.batch_rows // knobs.accumulate
    ways = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    if rows % ways:
        raise RequestError(
            f"finetune.batch_rows / finetune.accumulate = {rows} rows cannot be divided over "
            f"finetune.mesh {' x '.join(RULES['batch'])} = {ways}; make it a multiple"
        )


def make_train_step(
    config: ModelConfig,
    knobs: FinetuneKnobs,
    total_steps: int,
    mesh: Mesh,
    *,
    dtype: Any,
    param_dtype: Any,
) -> TrainStep:
    """The jitted step. Its first argument is donated: the old state is gone after the call.

    Raises:
      RequestError: a micro-batch's rows cannot be divided over the mesh.
    """
    check_batch(knobs, mesh)
    optimizer = make_optimizer(knobs, total_steps)
    abstract = abstract_state(config, knobs, total_steps, mesh, param_dtype=param_dtype)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    blank = abstract_decoder(config, dtype=dtype, param_dtype=param_dtype)

    def sums(params: Parameters, micro: Batch, fixed: Parameters) -> LossSums:
        model = with_parameters(blank, params | fixed)
        hidden, _ = model(
            micro["tokens"],
            micro["positions"],
            packed_causal(micro["segment_ids"], micro["positions"]),
            remat=knobs.remat == "layer",
        )
        return completion_loss(
            model.logits, hidden, micro["target_at"], micro["targets"], micro["weights"]
        )

    def step(state: TrainState, batch: Batch, fixed: Parameters) -> tuple[TrainState, StepMetrics]:
        rows = {name: value for name, value in batch.items() if name != "stop"}
        total = jnp.sum(rows["weights"])
        count = jnp.sum(rows["weights"] > 0)
        grads, loss, correct = _accumulated(
            partial(sums, fixed=fixed), state.params, rows, knobs.accumulate, total
        )
        norm = optax.tree.norm(grads)
        wide = jax.tree.map(lambda value: value.astype(jnp.float32), state.params)
        updates, moments = optimizer.update(grads, state.optimizer, wide)
        params = jax.tree.map(
            lambda new, old: new.astype(old.dtype), optax.apply_updates(wide, updates), state.params
        )
        metrics = StepMetrics(
            loss=loss,
            token_accuracy=correct / count,
            grad_norm=norm,
            learning_rate=learning_rate(knobs, total_steps, state.step),
            finite=jnp.isfinite(loss) & jnp.isfinite(norm),
            stop=jnp.sum(batch["stop"]),
        )
        return TrainState(state.step + 1, params, moments), metrics

    whole = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, batch_shardings(mesh), None),
        out_shardings=(shardings, whole),
    )

    def run(state: TrainState, batch: Batch, fixed: Parameters) -> tuple[TrainState, StepMetrics]:
        with jax.set_mesh(mesh):
            out: tuple[TrainState, StepMetrics] = jitted(state, batch, fixed)
        return out

    return run


def batch_shardings(mesh: Mesh) -> dict[str, NamedSharding]:
    """Where the fields of a batch lie: rows divided over `data` and `fsdp`."""
    rows = NamedSharding(mesh, PartitionSpec(None, RULES["batch"]))
    fields = dict.fromkeys(Rows.__dataclass_fields__, rows)
    return {**fields, "stop": NamedSharding(mesh, PartitionSpec(mesh.axis_names))}


def put_batch(rows: Rows, accumulate: int, mesh: Mesh, *, stop: bool) -> Batch:
    """Puts the rows of a step on the mesh, `accumulate` micro-batches of them.

    Every process gives all rows and keeps its own; `stop` is this process's wish, seen by all.
    """
    shardings = batch_shardings(mesh)
    fields: Mapping[str, Any] = {
        name: value.reshape(accumulate, -1, *value.shape[1:])
        for name, value in rows.fields().items()
    } | {"stop": np.full(mesh.devices.size, stop, np.int32)}
    return {
        name: jax.make_array_from_callback(value.shape, shardings[name], value.__getitem__)
        for name, value in fields.items()
    }


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


def _accumulated(
    sums: Callable[[Parameters, Batch], LossSums],
    params: Parameters,
    batch: Batch,
    accumulate: int,
    total: jax.Array,
) -> tuple[Parameters, jax.Array, jax.Array]:
    """Gradient (float32), loss and number of correct targets over all micro-batches."""

    def mean(params: Parameters, micro: Batch) -> tuple[jax.Array, LossSums]:
        out = sums(params, micro)
        return out.loss / total, out

    def gradient(micro: Batch) -> tuple[Parameters, LossSums]:
        (_, out), grads = jax.value_and_grad(mean, has_aux=True)(params, micro)
        return jax.tree.map(lambda grad: grad.astype(jnp.float32), grads), out

    if accumulate == 1:
        grads, out = gradient({name: value[0] for name, value in batch.items()})
    else:
        zeros = jax.tree.map(lambda value: jnp.zeros(value.shape, jnp.float32), params)
        zero = LossSums(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
        (grads, out), _ = jax.lax.scan(
            lambda carry, micro: (jax.tree.map(jnp.add, carry, gradient(micro)), None),
            (zeros, zero),
            batch,
        )
    return grads, out.loss / total, out.correct
