"""What must be set before JAX is first imported: CPU, 8 fake devices, a shared cache."""

from __future__ import annotations

import os
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"ste_jax_test_cache_{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of the whole recipe on the tiny model: (its directory, its config file)."""
    import yaml
    from etils import epath

    from ste_jax.cli import main
    from ste_jax.rundir import RunDir
    from tests import tiny

    root = tmp_path_factory.mktemp("tiny")
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny.config(root)))
    # by a relative name, as most people would give it
    assert main(["run", str(path), "--dir", os.path.relpath(root / "run")]) == 0
    return RunDir(epath.Path(root / "run")), path
