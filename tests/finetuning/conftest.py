"""Fine-tunings of the same shapes share their step: to trace it again takes half of a small one."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from ste_jax.finetuning import loop
from ste_jax.finetuning.loop import FinetuneResult
from tests.finetuning.small import Trained
from tests.finetuning.undisturbed import Check, check_like


@pytest.fixture(scope="session", autouse=True)
def steps_are_traced_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", functools.cache(loop.make_train_step))
        yield


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[FinetuneResult, Trained]:
    """A fine-tuning to which nothing happens."""
    trained = Trained(epath.Path(tmp_path_factory.mktemp("undisturbed")))
    return trained.run(), trained


@pytest.fixture(scope="session")
def check(undisturbed: tuple[FinetuneResult, Trained]) -> Check:
    """Checks that everything is bit for bit what it is when nothing happens."""
    return check_like(*undisturbed)


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    return Trained(epath.Path(tmp_path))
