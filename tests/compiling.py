"""How are the programs of tests compiled, and for how many devices?

Quickly and for eight, where a test does not ask for something else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import jax
import pytest

QUICK = "jax_disable_most_optimizations"
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
"""Compiler options of a single program that is to be a user's."""
if "--xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", ""):  # see conftest.py
    OPTIMIZED["xla_cpu_use_fusion_emitters"] = True


@contextlib.contextmanager
def optimized() -> Iterator[None]:
    """Programs are compiled as a user's are, and none is taken that was compiled otherwise."""
    before = jax.config.read(QUICK)
    jax.clear_caches()
    jax.config.update(QUICK, False)
    try:
        yield
    finally:
        jax.clear_caches()
        jax.config.update(QUICK, before)


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """What runs in this process finds one device, for a test of which eight are not the point."""
    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: one)
        patch.setattr(jax, "local_devices", lambda: one)
        yield
