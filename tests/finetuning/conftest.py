"""Fine-tunings of the same shapes share their step: to trace it again takes half of a small one."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from ste_jax.finetuning import loop


@pytest.fixture(scope="session", autouse=True)
def steps_are_traced_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", functools.cache(loop.make_train_step))
        yield
