"""A process that is handed weights which were trained on all, and decodes its own share of rows.

`python -m tests.multihost.decoding_process DIRECTORY PORT RANK`, or without PORT and RANK: alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ste_jax.config.schema import FinetuneKnobs, MeshKnobs
from ste_jax.finetuning import packing
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.train_step import abstract_state, initial_state, make_train_step, put_batch
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import Parameters, parameters_of, with_parameters
from ste_jax.models.transfer import hand_over, on_mesh
from ste_jax.parallel.processes import Processes, initialize
from ste_jax.parallel.sharding import make_mesh, parameter_sharding
from tests.decoding import small
from tests.decoding.small import collect, prompt, request

CONFIG = ModelConfig(
    vocab_size=3072,
    hidden_size=512,
    intermediate_size=48,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position=64,
)
"""The embeddings have 6 MiB: gloo's collectives are cut into chunks of 4."""
TRAINED_ON = MeshKnobs(fsdp=4)
DECODED_ON = MeshKnobs(fsdp=1, tensor=2)
PROMPTS = 8


def training_mesh() -> Mesh:
    """All devices, in an order that mixes the processes', as a slice's own order can."""
    devices = jax.devices()
    return make_mesh(TRAINED_ON, [devices[i] for i in (0, 2, 3, 1)])


def axes_of(config: ModelConfig) -> dict[str, Any]:
    return {path: declared.axes for path, declared in config.parameters().items()}


def spread(model: Decoder, mesh: Mesh) -> Parameters:
    """The model's parameters over the mesh of all processes."""
    placed = {}
    for path, value in parameters_of(model).items():
        whole = np.asarray(value)
        sharding = parameter_sharding(whole.shape, axes_of(model.config)[path], mesh)
        placed[path] = jax.make_array_from_callback(
            whole.shape, sharding, lambda at, whole=whole: whole[at]
        )
    return placed


def trained(mesh: Mesh) -> Parameters:
    """Parameters after a step of training on the mesh."""
    from tests.finetuning.small import example, small_model  # asks for devices, so not earlier

    knobs = TrainingKnobs.of(
        FinetuneKnobs(
            sequence_length=32, batch_rows=4, learning_rate=1e-2, warmup_steps=0, dtype="float32"
        )
    )
    examples = [example(number) for number in range(12)]
    plan = packing.plan(examples, knobs, seed=0)
    kinds: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    params = spread(small_model(CONFIG), mesh)
    abstract = abstract_state(CONFIG, knobs, 1, mesh, param_dtype=jnp.float32)
    state = initial_state(params, abstract, knobs, 1)
    rows = packing.fill(
        plan.steps[0],
        examples,
        count=4,
        sequence_length=32,
        targets_per_row=plan.targets_per_row,
    )
    step = make_train_step(CONFIG, knobs, 1, mesh, **kinds)
    state, metrics = step(state, put_batch(rows, 1, mesh), {})
    assert metrics.finite
    return state.params


def pieces(values: Parameters) -> dict[str, np.ndarray[Any, Any]]:
    """What this process holds, by path and place in the array."""
    found = {}
    for path, value in values.items():
        for shard in value.addressable_shards:
            spans = zip(shard.index, value.shape, strict=True)
            place = json.dumps([span.indices(size)[:2] for span, size in spans])
            found[f"{path}|{place}"] = np.asarray(shard.data)
    return found


def hand_over_a_training(directory: Path, rank: int, local: Mesh) -> None:
    params = trained(training_mesh())
    np.savez(directory / f"trained-{rank}.npz", **pieces(params))
    for dtype in ("float32", "bfloat16"):
        placed, received = hand_over(params, axes_of(CONFIG), local, dtype)
        for path, value in placed.items():
            declared = CONFIG.parameters()[path]
            assert value.sharding == parameter_sharding(declared.shape, declared.axes, local)
        whole = {path: np.asarray(value, np.float32) for path, value in placed.items()}
        np.savez(directory / f"{dtype}-{rank}.npz", received=received, **whole)


def decode(model: Decoder, local: Mesh, rank: int, count: int) -> list[dict[str, Any]]:
    """This process's share of the rows, in order."""
    engine = small.engine(model, local)
    for number in range(rank, PROMPTS, count):
        one = request(f"{number}", (0, 1), max_new_tokens=16, temperature=0.9, top_p=0.9)
        engine.submit(one, prompt(number, 3 + 3 * number))
    found = collect(engine.completions())
    return [{**vars(found[key]), "id": key} for key in sorted(found)]


def main(directory: Path, port: str = "", rank: int = 0) -> None:
    processes = initialize(f"localhost:{port}", 2, rank) if port else Processes()
    local = make_mesh(DECODED_ON, jax.local_devices()[::-1])
    model = small.small_model()
    if port:
        hand_over_a_training(directory, rank, local)
        spread_out = with_parameters(model, spread(model, training_mesh()))
        model = on_mesh(spread_out, local, "float32")
    rows = decode(model, local, rank, processes.count)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / f"rows-{rank if port else 'alone'}.jsonl").write_text(text)
    processes.barrier("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3], *map(int, sys.argv[3:]))
