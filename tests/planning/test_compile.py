"""Are programs compiled for a slice that is not here, and is what they need shown?"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tpu_aot
from ste_jax.config.schema import MeshKnobs
from ste_jax.models.config import ModelConfig
from ste_jax.planning import compile
from ste_jax.system.errors import RequestError

TOY = ModelConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    max_position=4096,
)
KNOBS = dataclasses.replace(
    tpu_aot.KNOBS, prompt_buckets=(256,), prefill_chunk=128, mesh=MeshKnobs(fsdp=1, tensor=4)
)
CASE = tpu_aot.Case("toy", "v5e:2x2", KNOBS)

# In a process of its own: libtpu is one process's, and reads the environment once.
COMPILE = """
import json, jax
jax.config.update("jax_platforms", "cpu")
from jax.experimental import pallas as pl
from ste_jax.planning import compile
from benchmarks import tpu_aot
from tests.planning.test_compile import CASE, TOY

sliced = tpu_aot.Slice(CASE, TOY)
decode, step, sent = sliced.decode_step()
_, piece = sliced.last_piece()
floor = tpu_aot.decode_floor(TOY, CASE.knobs, sliced.mesh.size)

def double(x, out):
    out[...] = x[...] + x[...]

declared = pl.CostEstimate(flops=12345, transcendentals=0, bytes_accessed=6789)
x = jax.ShapeDtypeStruct((8, 128), jax.numpy.float32)
kernel = jax.jit(pl.pallas_call(double, out_shape=x, cost_estimate=declared))
alone = jax.sharding.NamedSharding(
    jax.sharding.Mesh(sliced.mesh.devices.flat[:1], ("x",)), jax.sharding.PartitionSpec()
)
placed = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=alone)
kernel = compile.compile_for(kernel.lower(placed), sliced.mesh).cost()
print(json.dumps({
    "chip": compile.chip_of(sliced.mesh).name,
    "bytes": decode.bytes, "arguments": decode.argument_bytes,
    "flops": step.flops / floor.flops, "hbm": step.hbm_bytes / floor.hbm_bytes,
    "sent": sent, "prefill": piece.flops,
    "kernel": [kernel.flops, kernel.hbm_bytes],
}))
"""


def test_a_toy_is_compiled_for_a_slice_and_counted() -> None:
    why = compile.missing_libtpu()
    if why:
        pytest.skip(why)
    root = Path(tpu_aot.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "another process of this machine is using libtpu" in done.stderr:
        pytest.skip("another process of this machine is using libtpu")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["chip"] == "v5e"
    held = tpu_aot.ITEM * TOY.parameter_count() / 4
    cached = 2 * 2 * TOY.num_layers * TOY.head_dim * 8 * (256 + 16 * 256)
    assert held + cached <= found["arguments"] <= 1.1 * (held + cached)
    assert found["arguments"] < found["bytes"] < 3 * found["arguments"]
    assert 1 <= found["flops"] < 1.1
    assert list(found["sent"]) == ["tensor"]
    # No logits; a chunk before the piece and the piece itself, which its kernel takes whole.
    products = 128 * (TOY.flops_per_token - 2 * 1024 * 256)
    products += 4 * 128 * 256 * TOY.num_heads * TOY.head_dim * TOY.num_layers
    assert 1 <= 4 * found["prefill"] / products < 1.05
    assert found["kernel"] == [12345, 6789]


def test_without_libtpu_the_benchmark_says_so_and_does_not_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tpu_aot.main([]) == 0
    assert "libtpu is not installed" in capsys.readouterr().out
    with pytest.raises(RequestError, match="libtpu is not installed"):
        compile.topology_mesh("v5e:2x2", MeshKnobs())


def figures(**changed: Any) -> dict[str, Any]:
    decode = {"bytes_needed": 10, "hbm_ratio": 1.1, "flops_ratio": 1.0}
    return {
        "model": "m",
        "topology": "t",
        "hbm_bytes": 16,
        "decode": {**decode, **changed},
        "prefill": {"bytes_needed": 12},
        "unrolled": {"hbm_bytes": changed.get("share", 0.99)},
    }


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hbm_ratio": 1.31}, "above 1.3"),
        ({"hbm_ratio": 0.99}, "the count is wrong"),
        ({"flops_ratio": 0.99}, "the count is wrong"),
        ({"bytes_needed": 17}, "more memory than a chip has"),
        ({"share": 1.021}, "unrolled"),
    ],
)
def test_a_claim_that_fails_is_named(changed: dict[str, Any], said: str) -> None:
    assert tpu_aot.failures(figures()) == []
    (claim,) = tpu_aot.failures(figures(**changed))
    assert said in claim


def test_a_program_without_a_loop_has_a_group_for_every_layer() -> None:
    flat = tpu_aot.without_loop(TOY, 4)
    assert [len(group) for group in flat.groups] == [1, 1, 1, 1] and flat.cycle_groups == 4
    per_layer = (flat.parameter_count() - TOY.parameter_count()) / 2
    assert (
        per_layer
        == TOY.parameter_count() - dataclasses.replace(TOY, num_layers=1).parameter_count()
    )
