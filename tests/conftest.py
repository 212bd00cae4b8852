"""What must be set before JAX is imported: CPU, 8 fake devices, quick compilation, a cache."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import tempfile
from importlib.metadata import version

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Most programs here run once, on a few numbers: what they cost is their compilation. It takes half
# of the time without LLVM's optimisations, and a quarter if XLA also writes out loops in its older
# way, which releases after this one do not know. `tests/compiling.py` is for tests that need more.
quick = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
flags = os.environ.get("XLA_FLAGS", "").split()
for flag in (
    *["--xla_cpu_use_fusion_emitters=false"] * (quick and version("jaxlib").startswith("0.10.")),
    "--xla_force_host_platform_device_count=8",
):
    if flag not in flags:
        flags.append(flag)
os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"ste_jax_test_cache_{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def optimized():
    """Programs as a user's are, for a test of what hangs on how they are compiled."""
    from tests import compiling

    with compiling.optimized():
        yield


@pytest.fixture
def one_device():
    """What runs in this process finds one device, where eight are not the point."""
    from tests import compiling

    with compiling.one_device():
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of the whole recipe on the tiny model: (its directory, its config file)."""
    import yaml
    from etils import epath

    from ste_jax.cli import main
    from ste_jax.run.layout import RunDir
    from tests import tiny

    with once_for_all_workers(tmp_path_factory, "tiny") as root:
        path = root / "tiny.yaml"
        if not (root / "done").exists():
            path.write_text(yaml.safe_dump(tiny.config(root)))
            # by a relative name, as most people would give it
            assert main(["run", str(path), "--dir", os.path.relpath(root / "run")]) == 0
            (root / "done").touch()
    return RunDir(epath.Path(root / "run")), path


@contextlib.contextmanager
def once_for_all_workers(tmp_path_factory, name: str):
    """A directory that the workers of a run share; one at a time is inside."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker's own lies in that of the run
    (base / name).mkdir(exist_ok=True)
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield base / name
