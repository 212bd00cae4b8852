"""How long does a matrix product take by itself?

It is timed in the form and layout that is the fastest of those tried, over many different operands,
so that none waits in a cache for its next use.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Form = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A product as `einsum` takes it, and the shapes of its two operands."""


def best(*forms: Form, count: int, times: int = 5) -> float:
    """Seconds of `count` products over different operands, in the fastest form."""
    return min(_timed(form, count, times) for form in forms)


def quickest(run: Callable[[], Any], times: int = 5) -> float:
    """The least seconds that `run` took, after a first time that does not count."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _timed(form: Form, count: int, times: int) -> float:
    spec, left, right = form
    draw = np.random.default_rng(0)

    def operands(shape: tuple[int, ...]) -> list[jax.Array]:
        one = jnp.asarray(draw.normal(size=shape), jnp.float32)
        return [one + index for index in range(count)]

    program = jax.jit(lambda a, b: [jnp.einsum(spec, x, y) for x, y in zip(a, b, strict=True)])
    a, b = operands(left), operands(right)
    return quickest(lambda: program(a, b), times)
