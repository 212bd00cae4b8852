"""One of two processes that load a model onto the devices of both: DIRECTORY PORT RANK."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.load_weights import load_weights
from ste_jax.models.attention import causal
from ste_jax.parallel.sharding import make_mesh


def main(directory: Path, port: int, rank: int) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    mesh = make_mesh(MeshKnobs(fsdp=2, tensor=2))
    graph, state = nnx.split(load_weights(directory / "hf", mesh))
    assert not state["layers"][0]["down"].get_value().is_fully_addressable

    def run(state: nnx.State, tokens: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(8), tokens.shape)
        attend = causal(jnp.ones_like(tokens), positions)
        model = nnx.merge(graph, state)
        return model.logits(model(tokens, positions, attend)[0])

    rows = np.arange(32, dtype=np.int32).reshape(4, 8)
    divided, whole = (
        NamedSharding(mesh, PartitionSpec("fsdp")),
        NamedSharding(mesh, PartitionSpec()),
    )
    tokens = jax.make_array_from_callback(rows.shape, divided, lambda at: rows[at])
    with jax.set_mesh(mesh):
        logits = jax.jit(run, out_shardings=whole)(state, tokens)
    if rank == 0:
        np.save(directory / "logits.npy", np.asarray(logits))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
