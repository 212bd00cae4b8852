"""A disk that is full, as far as this process can tell."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[Callable[[], None]]]:
    """`with full_disk(size) as begin`: after `begin()` no file can grow beyond `size` bytes."""

    @contextmanager
    def limited(size: int) -> Iterator[Callable[[], None]]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
