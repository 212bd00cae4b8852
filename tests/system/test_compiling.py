"""A program that takes long to compile is named while it is compiled, and counted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from ste_jax.system import compiling, progress


def test_what_is_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(progress, "compiling", seen.append)
    monkeypatch.setattr(progress, "compiled", seen.append)
    compiling.watch()
    compiling.watch()  # as a second command in the same process would

    def _doubled(x: jax.Array) -> jax.Array:
        return x * 2

    jax.jit(_doubled).lower(jnp.ones(3)).compile()
    names = [each for each in seen if isinstance(each, str)]
    assert names.count("doubled") == 1
    assert 0 < seen[seen.index("doubled") + 1] < 60
