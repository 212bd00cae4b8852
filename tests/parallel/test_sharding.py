"""Meshes are as asked for, and arrays lie where the rules say."""

from __future__ import annotations

import jax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.shapes import published
from ste_jax.config.schema import MeshKnobs
from ste_jax.models.decoder import abstract_decoder
from ste_jax.parallel.sharding import (
    RULES,
    constrain,
    make_mesh,
    parameter_sharding,
    partition,
    state_sharding,
)
from ste_jax.system.errors import RequestError

SMOLLM2 = published("SmolLM2-135M")


@pytest.mark.parametrize(
    ("knobs", "sizes"),
    [
        (MeshKnobs(), (1, 8, 1, 1)),
        (MeshKnobs(data=-1, fsdp=2, tensor=2), (2, 2, 1, 2)),
        (MeshKnobs(data=2, fsdp=4, tensor=1), (2, 4, 1, 1)),
        (MeshKnobs(fsdp=1, tensor=-1), (1, 1, 1, 8)),
        (MeshKnobs(fsdp=-1, expert=4), (1, 2, 4, 1)),
    ],
)
def test_the_free_axis_takes_what_is_left(knobs: MeshKnobs, sizes: tuple[int, ...]) -> None:
    mesh = make_mesh(knobs)
    assert mesh.axis_names == ("data", "fsdp", "expert", "tensor")
    assert mesh.devices.shape == sizes
    assert set(mesh.devices.flat) == set(jax.devices())


def test_a_mesh_of_some_devices() -> None:
    assert set(make_mesh(MeshKnobs(), jax.devices()[2:4]).devices.flat) == set(jax.devices()[2:4])


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (MeshKnobs(fsdp=3), r"fsdp=3, .* is for 3 devices; here are 8 \(cpu\)"),
        (MeshKnobs(tensor=3), "is for a multiple of 3 devices; here are 8"),
        (MeshKnobs(tensor=16), "is for a multiple of 16 devices; here are 8"),
        (MeshKnobs(data=-1, fsdp=-1), "only one axis"),
        (MeshKnobs(data=0), "positive"),
        (MeshKnobs(data=-2), "positive"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(knobs: MeshKnobs, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        make_mesh(knobs)


def test_what_does_not_divide_stays_whole() -> None:
    mesh = make_mesh(MeshKnobs(data=2, fsdp=2, tensor=2))
    declared = SMOLLM2.parameters()

    def spec(name: str) -> PartitionSpec:
        return parameter_sharding(declared[name].shape, declared[name].axes, mesh).spec

    # 9 and 3 heads do not divide by 2; 1536 and 576 do.
    assert spec("layers.0.q") == PartitionSpec(None, ("fsdp",), None, None)
    assert spec("layers.0.k") == PartitionSpec(None, ("fsdp",), None, None)
    assert spec("layers.0.gate") == PartitionSpec(None, ("fsdp",), ("tensor",))
    assert spec("embed") == PartitionSpec(("tensor",), ("fsdp",))


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    axes=st.lists(st.sampled_from([None, *RULES]), min_size=4, max_size=4),
)
def test_every_shape_can_be_placed(sizes: list[int], axes: list[str | None]) -> None:
    mesh = make_mesh(MeshKnobs(data=2, fsdp=2, tensor=2))
    spec = partition(sizes, axes[: len(sizes)], mesh)
    shard = NamedSharding(mesh, spec).shard_shape(tuple(sizes))
    for size, piece, axis in zip(sizes, shard, axes, strict=False):
        most = 2 ** len(RULES[axis]) if axis is not None else 1
        assert size // piece in {2**n for n in range(most)} and size // piece <= most
    assert (
        sizes[0] % 2
        or axes[0] in (None, "layers", "head_dim", "experts", "lora")
        or shard[0] < sizes[0]
    )


def test_the_state_sharding_is_a_tree_like_the_state() -> None:
    _, state = nnx.split(abstract_decoder(SMOLLM2))
    mesh = make_mesh(MeshKnobs(fsdp=4, tensor=2))
    shardings = state_sharding(state, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    assert shardings["layers"][0]["down"].get_value().spec == PartitionSpec(
        None, ("tensor",), ("fsdp",)
    )


def test_a_batch_is_divided_over_data_and_fsdp() -> None:
    mesh = make_mesh(MeshKnobs(data=2, fsdp=2, tensor=2))
    spec = partition((8, 5), ("batch", None), mesh)
    assert NamedSharding(mesh, spec).shard_shape((8, 5)) == (2, 5)


def test_constraints_hold_inside_a_mesh_and_are_nothing_outside() -> None:
    mesh = make_mesh(MeshKnobs(data=2, fsdp=2, tensor=2))
    x = jax.numpy.ones((8, 3))
    with jax.set_mesh(mesh):
        held = jax.jit(lambda x: constrain(x, ("batch", None)))(x)
    assert held.sharding.shard_shape(held.shape) == (2, 3)
    free = jax.jit(lambda x: constrain(x, ("batch", None)))(x)
    assert free.sharding.shard_shape(free.shape) == (8, 3)
