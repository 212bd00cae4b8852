"""What is read from a checkpoint is what was written, on any mesh, or it is refused by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh

from ste_jax.checkpoints.card import is_checkpoint, read_card
from ste_jax.checkpoints.checkpoint import load_checkpoint, restore_parameters, save_checkpoint
from ste_jax.config.schema import MeshKnobs
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import checksum, parameters_of
from ste_jax.parallel.processes import Processes
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system.errors import Preempted, RequestError, WorkError
from tests.finetuning.small import CONFIG, arrays_of, small_model
from tests.full_disk import files_no_larger_than

ONE = make_mesh(MeshKnobs(), jax.devices()[:1])


def mesh(data: int, fsdp: int, tensor: int) -> Mesh:
    devices = jax.devices()[: data * fsdp * tensor]
    return make_mesh(MeshKnobs(data=data, fsdp=fsdp, tensor=tensor), devices)


class Words:
    """A tokenizer as far as a checkpoint is concerned."""

    def save(self, directory: epath.Path) -> None:
        directory.mkdir()
        (directory / "tokenizer.json").write_text('{"words": []}')


def save(path: Path, model: Decoder | None = None, **provenance: Any) -> None:
    save_checkpoint(path, model or small_model(), tokenizer=Words(), provenance=provenance)


def same(model: Decoder, wanted: dict[str, np.ndarray]) -> bool:
    found = arrays_of(model)
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[path], value) for path, value in wanted.items()
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint written from 8 devices."""
    path = tmp_path_factory.mktemp("saved") / "checkpoint"
    save(tmp_path_factory.getbasetemp() / "plain")
    first = load_checkpoint(tmp_path_factory.getbasetemp() / "plain", mesh(2, 2, 2))
    save(path, first, run="r", iteration=2, validation={"accuracy": 0.5})
    return path


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 8, 1), (1, 1, 2)])
def test_it_comes_back_on_another_mesh_bit_for_bit(
    sizes: tuple[int, int, int], saved: Path
) -> None:
    model = load_checkpoint(saved, mesh(*sizes))
    assert same(model, arrays_of(small_model()))
    assert model.config == CONFIG
    gate = parameters_of(model)["layers.0.gate"]
    assert len(gate.sharding.device_set) == np.prod(sizes)
    assert gate.addressable_shards[0].data.size * np.prod(sizes) == gate.size


def test_a_relative_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("here"), step=1)
    assert same(load_checkpoint(Path("here"), ONE), arrays_of(small_model()))


def test_the_card_tells_what_it_is(saved: Path) -> None:
    card = read_card(saved)
    assert card["model"] == json.loads(json.dumps(CONFIG.to_dict()))
    assert card["provenance"] == {"run": "r", "iteration": 2, "validation": {"accuracy": 0.5}}
    assert is_checkpoint(saved)
    assert (saved / "tokenizer" / "tokenizer.json").exists()
    assert sorted(path.name for path in saved.parent.iterdir()) == ["checkpoint"]


def test_the_type_is_asked_for_or_kept(tmp_path: Path) -> None:
    exact = arrays_of(small_model())
    half = {path: value.astype(jnp.bfloat16) for path, value in exact.items()}
    save(tmp_path / "f32")
    model = load_checkpoint(tmp_path / "f32", ONE, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert same(model, half)
    assert model.dtype == jnp.bfloat16
    save(tmp_path / "bf16", model)
    assert {p["dtype"] for p in read_card(tmp_path / "bf16")["parameters"].values()} == {"bfloat16"}
    wide = load_checkpoint(tmp_path / "bf16", ONE)
    assert same(wide, {path: value.astype(np.float32) for path, value in half.items()})


def test_parameters_alone_come_back_on_another_mesh(tmp_path: Path) -> None:
    wanted = arrays_of(small_model())
    half = {name: value.astype(jnp.bfloat16) for name, value in wanted.items()}
    save(tmp_path / "wide")
    model = load_checkpoint(tmp_path / "wide", mesh(2, 2, 2), param_dtype=jnp.bfloat16)
    save(tmp_path / "half", model)
    for path, dtype, values in (("half", None, half), ("wide", jnp.bfloat16, half)):
        found = restore_parameters(tmp_path / path, mesh(1, 2, 1), dtype=dtype)
        assert found.keys() == values.keys() == CONFIG.parameters().keys()
        for name, value in values.items():
            assert found[name].dtype == jnp.bfloat16
            assert np.array_equal(found[name], value)
        gate = found["layers.0.gate"]
        assert gate.addressable_shards[0].data.size * 2 == gate.size
    with pytest.raises(RequestError, match="is not a complete checkpoint"):
        restore_parameters(tmp_path, ONE)


def test_the_loaded_model_computes(saved: Path) -> None:
    from ste_jax.models.attention import causal

    ones = jnp.ones((1, 4), jnp.int32)
    places = jnp.arange(4)[None]
    outs = []
    for model in (load_checkpoint(saved, ONE), small_model()):
        hidden, _ = model(ones, places, causal(ones, places))
        outs.append(np.asarray(model.logits(hidden)))
    assert np.array_equal(*outs)


def files_of(path: Path) -> list[Path]:
    found = [file for file in (path / "parameters").rglob("*") if file.is_file()]
    return sorted(found, key=lambda file: file.stat().st_size)


def edit_card(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    card = json.loads((path / "ste_checkpoint.json").read_text())
    edit(card)
    (path / "ste_checkpoint.json").write_text(json.dumps(card))


def flip(path: Path) -> None:
    content = bytearray(files_of(path)[-1].read_bytes())
    content[len(content) // 2] ^= 1
    files_of(path)[-1].write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (flip, r"damaged: \S+ (is not what was written|cannot be read)"),
    "a lost file": (lambda p: files_of(p)[-1].unlink(), r"damaged: \S+ cannot be read"),
    "a file cut short": (
        lambda p: os.truncate(files_of(p)[-1], 1000),
        r"damaged: \S+ cannot be read",
    ),
    "no parameters": (
        lambda p: (p / "parameters").rename(p / "other"),
        r"damaged: \S+ cannot be read",
    ),
    "no card": (lambda p: (p / "ste_checkpoint.json").unlink(), "is not a complete checkpoint"),
    "half a card": (
        lambda p: (p / "ste_checkpoint.json").write_text('{"format": 2, '),
        r"ste_checkpoint.json is damaged",
    ),
    "an empty card": (
        lambda p: edit_card(p, lambda card: card.pop("parameters")),
        "is damaged: parameters missing",
    ),
    "a card of the future": (
        lambda p: edit_card(p, lambda card: card.update(format=3)),
        "format is 3, this version reads 2",
    ),
    "another number of layers": (
        lambda p: edit_card(p, lambda card: card["model"].update(num_layers=3)),
        r"layers.0.attention_norm has shape \(2, 16\), its model config makes it \(3, 16\)",
    ),
    "other parameters": (
        lambda p: edit_card(p, lambda card: card["model"].update(tie_embeddings=True)),
        "has a foreign parameter unembed",
    ),
    "an unknown field": (
        lambda p: edit_card(p, lambda card: card["model"].update(colour="red")),
        "colour",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_is_refused_by_name(what: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save(path)
    damage, told = DAMAGE[what]
    damage(path)
    with pytest.raises(RequestError, match=told) as raised:
        load_checkpoint(path, ONE)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_key_of_a_later_version_is_refused_by_file_and_key(tmp_path: Path) -> None:
    save(tmp_path / "later")
    for change in (
        lambda card: card["model"].update(gate_bias=True),
        lambda card: card["model"]["kinds"][0].update(gate_bias=card["model"].pop("gate_bias")),
    ):
        edit_card(tmp_path / "later", change)
        with pytest.raises(RequestError, match=r"later/ste_checkpoint\.json: .*gate_bias"):
            load_checkpoint(tmp_path / "later", mesh(1, 1, 1))


def test_nothing_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert not is_checkpoint(tmp_path)
    assert not is_checkpoint(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert not is_checkpoint(tmp_path / "file")


def test_a_new_one_takes_the_place_of_the_old(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint", small_model(seed=1), step=1)
    save(tmp_path / "checkpoint", small_model(seed=2), step=2)
    assert read_card(tmp_path / "checkpoint")["provenance"] == {"step": 2}
    assert same(load_checkpoint(tmp_path / "checkpoint", ONE), arrays_of(small_model(seed=2)))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_full_disk_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save(path, small_model(seed=1))
    with (
        files_no_larger_than(2000),
        pytest.raises(WorkError, match=r"could not write the checkpoint .*: File too large; make"),
    ):
        save(path, small_model(seed=2))
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint"]
    assert same(load_checkpoint(path, ONE), arrays_of(small_model(seed=1)))


def test_a_tokenizer_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    class Broken:
        def save(self, directory: epath.Path) -> None:
            raise PermissionError(13, "Permission denied")

    with pytest.raises(WorkError, match="Permission denied"):
        save_checkpoint(tmp_path / "checkpoint", small_model(), tokenizer=Broken(), provenance={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("place", "kept"), [("begun", 1), ("complete", 2)])
def test_preempted_at_a_barrier_it_is_the_old_or_the_new(
    place: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def barrier(processes: Processes, name: str) -> None:
        if place in name:
            raise Preempted("asked to stop")

    path = tmp_path / "checkpoint"
    save(path, small_model(seed=1))
    monkeypatch.setattr(Processes, "barrier", barrier)
    with pytest.raises(Preempted):
        save(path, small_model(seed=2))
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint"]
    assert same(load_checkpoint(path, ONE), arrays_of(small_model(seed=kept)))


KILLED = """
import os, signal, sys, threading
import tests.conftest
from pathlib import Path
from tests.checkpoints.test_checkpoints import save, small_model

def watch():
    root = Path(sys.argv[1])
    while True:
        if any("orbax-checkpoint-tmp" in path.name for path in root.glob("*/*")):
            os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
save(Path(sys.argv[1]) / "checkpoint", small_model(seed=2))
"""


def test_killed_while_it_is_written_it_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save(path, small_model(seed=1))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, os.fspath(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tmp_path.iterdir())) == 2  # what is left of the new one lies beside
    assert same(load_checkpoint(path, ONE), arrays_of(small_model(seed=1)))
    save(path, small_model(seed=3))
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_the_checksum_is_the_arrays(dtype: str) -> None:
    array = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16, 4)) * 100, dtype)
    wanted = int(checksum(array))
    spread = jax.device_put(
        array, jax.sharding.NamedSharding(mesh(2, 2, 2), jax.P("data", ("fsdp", "tensor")))
    )
    assert int(checksum(spread)) == wanted
    assert int(checksum(array.at[3, 5, 1].set(array[3, 5, 1] + 1))) != wanted
    assert int(checksum(array[::-1])) != wanted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(8, 262_147), (4096, 512)], ids=["a rest", "whole slices"])
def test_the_checksum_of_a_large_array_is_summed_by_slices(
    shape: tuple[int, int], dtype: str
) -> None:
    array = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    bits = np.asarray(array).view(f"uint{8 * array.dtype.itemsize}").ravel().astype(np.uint32)
    wanted = int(np.sum(bits * (2 * np.arange(bits.size, dtype=np.uint32) + 1), dtype=np.uint32))
    assert int(checksum(array)) == wanted
    in_one, in_four = (
        jax.device_put(array, jax.sharding.NamedSharding(mesh(1, count, 1), jax.P("fsdp")))
        for count in (1, 4)
    )
    assert int(checksum(in_one)) == wanted
    assert int(checksum(in_four)) == wanted  # this one at once, on each device its part
    for place in ((0, 0), (shape[0] // 2, 5), (-1, -1)):  # the last is of the rest, if there is one
        assert int(checksum(array.at[place].add(1))) != wanted
