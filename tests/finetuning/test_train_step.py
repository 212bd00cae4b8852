"""A step gives one gradient, however its batch is packed, cut or spread: the reference's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from ste_jax.config.schema import MeshKnobs
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.packing import Rows, fill, pack, plan
from ste_jax.finetuning.train_step import (
    StepMetrics,
    TrainState,
    abstract_state,
    initial_state,
    make_train_step,
    put_batch,
    step_flops,
    stochastically,
)
from ste_jax.model_io.load_weights import load_weights
from ste_jax.model_io.sources import Source
from ste_jax.models.config import Lora
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system.errors import RequestError
from tests.finetuning.small import CONFIG, EXAMPLES, KNOBS, ONE, small_model


def rows_of(lists: list[list[int]], count: int) -> Rows:
    return fill(lists, EXAMPLES, count=count, sequence_length=32, targets_per_row=64)


PACKED = pack([e.length for e in EXAMPLES[:7]], 32)
assert len(PACKED) == 3  # of 4 rows: one is empty


def train(
    model: Decoder,
    batches: list[Rows],
    knobs: TrainingKnobs = KNOBS,
    mesh: Mesh = ONE,
    total: int = 10,
) -> tuple[TrainState, list[StepMetrics]]:
    kinds = {"param_dtype": parameters_of(model)["embed"].dtype}
    abstract = abstract_state(model.config, knobs, total, mesh, **kinds)
    state = initial_state(parameters_of(model), abstract, knobs, total)
    step = make_train_step(model.config, knobs, total, mesh, dtype=model.dtype, **kinds)
    measured = []
    for rows in batches:
        state, metrics = step(state, put_batch(rows, knobs.accumulate, mesh), {})
        measured.append(jax.device_get(metrics))
    return state, measured


def first_moments(state: TrainState) -> dict[str, np.ndarray]:
    """What AdamW keeps of the first gradient: a tenth of it."""
    (mu,) = {
        id(node): node.mu
        for node in jax.tree.leaves(state.optimizer, is_leaf=lambda n: hasattr(n, "mu"))
        if hasattr(node, "mu")
    }.values()
    return {path: np.asarray(value) for path, value in mu.items()}


@pytest.fixture(scope="module")
def packed() -> tuple[StepMetrics, dict[str, np.ndarray]]:
    state, (metrics,) = train(small_model(), [rows_of(PACKED, 4)])
    return metrics, first_moments(state)


def assert_same_gradient(
    state: TrainState,
    metrics: StepMetrics,
    packed: tuple[StepMetrics, dict[str, np.ndarray]],
) -> None:
    want, moments = packed
    assert float(metrics.loss) == pytest.approx(float(want.loss), rel=2e-6)
    assert float(metrics.grad_norm) == pytest.approx(float(want.grad_norm), rel=1e-5)
    assert float(metrics.measures["token_accuracy"]) == pytest.approx(
        float(want.measures["token_accuracy"]), abs=1e-7
    )
    for path, moment in first_moments(state).items():
        np.testing.assert_allclose(moment, moments[path], atol=2e-7, rtol=1e-4, err_msg=path)


def test_packed_examples_train_as_they_would_one_by_one(packed: Any) -> None:
    # and so they do if the layers' insides are computed again
    single = [[index] for row in PACKED for index in row]
    knobs = dataclasses.replace(KNOBS, batch_rows=len(single), remat="layer")
    state, (metrics,) = train(small_model(), [rows_of(single, len(single))], knobs)
    assert_same_gradient(state, metrics, packed)


def test_micro_batches_on_eight_devices_add_up_to_the_batch(packed: Any) -> None:
    # Micro-batches of very different weights: a mean of means would be another number.
    knobs = dataclasses.replace(KNOBS, batch_rows=8, accumulate=2)
    mesh = make_mesh(MeshKnobs(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    batch = rows_of([*PACKED[:2], [], [], *PACKED[2:]], 8)
    state, (metrics,) = train(small_model(), [batch], knobs, mesh)
    assert_same_gradient(state, metrics, packed)
    gate = state.params["layers.0.gate"]
    assert gate.addressable_shards[0].data.size * 4 == gate.size
    # The moments lie as their parameters do.
    for path, param in state.params.items():
        moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape == param.shape]
        assert any(moment.sharding == param.sharding for moment in moments), path


def test_bfloat16_parameters_have_float32_moments() -> None:
    model = small_model(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    state, metrics = train(model, [rows_of(PACKED, 4)] * 5)
    assert {leaf.dtype for leaf in state.params.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {value.dtype for value in first_moments(state).values()} == {np.dtype(np.float32)}
    assert metrics[-1].loss < metrics[0].loss


def test_rounding_draws_one_of_the_two_neighbours_and_loses_nothing_on_average() -> None:
    value = jnp.float32(1.0 + 2**-10)  # an eighth of the way from 1 to its neighbour
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(
        jax.vmap(lambda key: stochastically(value[None], jnp.dtype(jnp.bfloat16), key))(keys)
    ).astype(np.float32)
    assert set(np.unique(drawn)) == {1.0, 1.0 + 2**-7}
    assert (drawn > 1).mean() == pytest.approx(1 / 8, abs=0.025)
    odd = jnp.asarray([np.inf, -np.inf, np.nan, 0.0, -1.0], jnp.float32)
    kept = np.asarray(stochastically(odd, jnp.dtype(jnp.bfloat16), keys[0])).astype(np.float32)
    np.testing.assert_array_equal(kept, np.asarray(odd))
    same = stochastically(odd, jnp.dtype(jnp.float32), keys[0])
    assert same is odd
    # What is drawn does not depend on where an array lies.
    wide = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)
    rounded = jax.jit(lambda x: stochastically(x, jnp.dtype(jnp.bfloat16), keys[1]))
    over = make_mesh(MeshKnobs(), jax.devices()[:8])
    spread = jax.device_put(wide, NamedSharding(over, PartitionSpec(over.axis_names)))
    assert np.array_equal(rounded(spread), rounded(wide))


def test_small_updates_reach_bfloat16_parameters_by_chance_alone() -> None:
    def moved(rounding: str) -> float:
        # a rate so small that each update lies far below half of what bfloat16 can tell
        knobs = dataclasses.replace(
            KNOBS, rounding=rounding, learning_rate=1e-5, warmup_steps=0, batch_rows=8,
            weight_decay=0.0,
        )  # fmt: skip
        model = small_model(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        before = {path: np.array(value) for path, value in parameters_of(model).items()}
        state, _ = train(model, [rows_of(PACKED, 8)] * 5, knobs)
        return float(
            np.mean([(np.asarray(v) != before[p]).mean() for p, v in state.params.items()])
        )

    share = moved("stochastic")
    assert share > 0.005
    assert moved("nearest") < 0.2 * share


def test_adafactor_trains_on_a_mesh() -> None:
    knobs = dataclasses.replace(KNOBS, optimizer="adafactor", batch_rows=8)
    mesh = make_mesh(MeshKnobs(fsdp=4, tensor=2), jax.devices()[:8])
    one, alone = train(small_model(), [rows_of(PACKED, 8)] * 6, knobs)
    _, spread = train(small_model(), [rows_of(PACKED, 8)] * 6, knobs, mesh)
    assert alone[-1].loss < 0.9 * alone[0].loss
    assert float(spread[-1].loss) == pytest.approx(float(alone[-1].loss), rel=1e-4)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(one.optimizer) if leaf.ndim}
    assert kinds == {np.dtype(np.float32)}


def test_rows_that_the_mesh_does_not_divide_are_refused() -> None:
    mesh = make_mesh(MeshKnobs(fsdp=8), jax.devices()[:8])
    knobs = dataclasses.replace(KNOBS, batch_rows=8, accumulate=2)
    with pytest.raises(RequestError, match=r"4 rows .* data x fsdp x expert = 8"):
        make_train_step(CONFIG, knobs, 1, mesh, dtype=jnp.float32, param_dtype=jnp.float32)


def test_flops_count_what_is_computed() -> None:
    rows = rows_of([[0, 1]], 1)
    lengths = [EXAMPLES[0].length, EXAMPLES[1].length]
    targets = len(EXAMPLES[0].completion_ids) + len(EXAMPLES[1].completion_ids)
    # Of small_model: q, k, v, o and the MLP of a layer; norms count as the config counts them.
    layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24 + 2 * 16
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    forward = 2 * sum(lengths) * (2 * layer + 16) + 2 * targets * 41 * 16 + 4 * pairs * 2 * 4 * 4
    assert step_flops(CONFIG, rows) == 3 * forward
    # Beside small matrices the large ones have no gradient, which is a third of their work.
    lora = dataclasses.replace(CONFIG, lora=Lora(rank=1, alpha=1.0, matrices=("q", "o")))
    small = 2 * sum(lengths) * 2 * (2 * (16 + 16))
    held = 2 * sum(lengths) * (2 * layer + 16) + 2 * targets * 41 * 16
    assert step_flops(lora, rows) == 3 * (forward + small) - held


def torch_loss(model: PreTrainedModel, examples: list[Any]) -> torch.Tensor:
    total, weight_sum = torch.zeros(()), 0.0
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
        logits = model(ids).logits[0, len(example.prompt_ids) - 1 : -1]
        targets = torch.tensor(example.completion_ids)
        weights = torch.tensor(example.target_weights())
        each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        total = total + (each * weights).sum()
        weight_sum += float(weights.sum())
    return total / weight_sum


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """So small a model only loses by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def torch_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def torch_gemma() -> Gemma3ForCausalLM:
    """Layers that see six places back, then one that sees all."""
    config = Gemma3TextConfig(
        **SHAPE,
        query_pre_attn_scalar=CONFIG.head_dim,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        attn_implementation="eager",
        tie_word_embeddings=True,
        pad_token_id=None,  # its row of the embeddings would be zero and stay so
    )
    return Gemma3ForCausalLM(config)


SHAPE: dict[str, Any] = {
    "vocab_size": CONFIG.vocab_size,
    "hidden_size": CONFIG.hidden_size,
    "intermediate_size": CONFIG.intermediate_size,
    "num_hidden_layers": CONFIG.num_layers,
    "num_attention_heads": CONFIG.num_heads,
    "num_key_value_heads": CONFIG.num_kv_heads,
    "head_dim": CONFIG.head_dim,
    "max_position_embeddings": CONFIG.max_position,
    "initializer_range": 0.3,
    "rms_norm_eps": CONFIG.norm_eps,
}


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("made", [torch_llama, torch_gemma])
def test_twenty_steps_are_those_of_torch_and_transformers(made: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = made()

    def as_ours(name: str) -> Decoder:
        theirs.save_pretrained(tmp_path / name)
        return load_weights(Source(kind="hf", path=epath.Path(tmp_path / name), name=name), ONE)

    ours = as_ours("start")

    steps = 20
    knobs = dataclasses.replace(KNOBS, accumulate=2, epochs=9.0, max_steps=steps, clip_norm=0.7)
    planned = plan(EXAMPLES, knobs, 0)
    batches = [
        fill(rows, EXAMPLES, count=4, sequence_length=32, targets_per_row=planned.targets_per_row)
        for rows in planned.steps
    ]
    state, measured = train(ours, batches, knobs, total=steps)

    norms = [p for name, p in theirs.named_parameters() if "norm" in name]
    others = [p for name, p in theirs.named_parameters() if "norm" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    for step, (rows, metrics) in enumerate(zip(planned.steps, measured, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = float(metrics.learning_rate)
        optimizer.zero_grad()
        loss = torch_loss(theirs, [EXAMPLES[index] for row in rows for index in row])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.7)
        optimizer.step()
        assert float(metrics.loss) == pytest.approx(float(loss.detach()), rel=1e-4), step
        assert float(metrics.grad_norm) == pytest.approx(float(norm), rel=1e-3), step

    wanted = parameters_of(as_ours("trained"))
    for path, value in state.params.items():
        np.testing.assert_allclose(value, wanted[path], atol=1e-3, rtol=1e-3, err_msg=path)
