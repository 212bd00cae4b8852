"""A shell that is set up for other JAX programs changes nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ste_jax.system.jax_settings import LEFT_TO_JAX, PINNED

ODD = {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_RANDOM_SEED_OFFSET": "5",
    "JAX_DISABLE_JIT": "true",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_LEGACY_PRNG_KEY": "error",
}
SETTLED = """
import json
{first}
from ste_jax.system.jax_settings import settle
settle()
import jax, jax.numpy as jnp, numpy as np
key = jax.random.PRNGKey(3)
print(json.dumps([
    {{name: str(value) for name, value in jax.config.values.items()}},
    str(jnp.asarray(np.float64(1.0)).dtype),
    jax.random.uniform(key, (3,)).tolist(),
    (jnp.ones((2, 3), jnp.bfloat16) + jnp.ones(3, jnp.float32) + jnp.log(0.0)).tolist()[0][0],
]))
"""


def settled(first: str = "", **settings: str) -> tuple[list[object], str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", SETTLED.format(first=first)],
        env={**plain, "JAX_PLATFORMS": "cpu", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def plain() -> list[object]:
    found, told = settled()
    assert "note:" not in told
    return found


def test_what_is_pinned_is_what_jax_begins_with(plain) -> None:
    values = plain[0]
    for name, value in PINNED.items():
        assert name not in values or values[name].lower().endswith(str(value).lower()), name


@pytest.mark.parametrize("first", ["", "import jax"], ids=["before JAX", "after it"])
def test_a_setting_of_the_shell_changes_nothing(first: str, plain) -> None:
    # What JAX has read already is set back where it is known what it was.
    odd = {name: value for name, value in ODD.items() if not first or name.lower() in PINNED}
    found, told = settled(first, **odd)
    assert found == plain
    for name, value in odd.items():
        assert f"note: {name}={value} is set aside" in told


def test_a_setting_as_it_is_anyhow_is_not_worth_a_word(plain) -> None:
    found, told = settled(JAX_ENABLE_X64="0", JAX_THREEFRY_PARTITIONABLE="True")
    assert found == plain and "note:" not in told


def test_a_setting_that_is_the_users_holds_and_is_told(plain) -> None:
    found, told = settled(JAX_DEFAULT_MATMUL_PRECISION="float32")
    assert found[0] == {**plain[0], "jax_default_matmul_precision": "float32"}
    assert "note: JAX_DEFAULT_MATMUL_PRECISION=float32 holds" in told


def test_a_setting_that_is_none_is_told(tmp_path) -> None:
    words = [sys.executable, "-m", "ste_jax.cli", "import", "nowhere", str(tmp_path / "out")]
    odd = {"JAX_ENABLE_X64": "perhaps", "JAX_DEFAULT_MATMUL_PRECISION": "much"}
    done = subprocess.run(words, env={**os.environ, **odd}, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    *notes, last = done.stderr.strip().splitlines()
    assert last.startswith("ste: JAX cannot read its settings: ") and "much" in last
    assert any(note.startswith("note: JAX_ENABLE_X64=perhaps is set aside") for note in notes)


def test_no_setting_is_named_twice() -> None:
    assert not set(PINNED) & set(LEFT_TO_JAX)
