"""Which program is being compiled? JAX says when it begins and when it has ended."""

from __future__ import annotations

import functools

import jax.monitoring

from ste_jax.system import progress

_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"


@functools.cache
def watch() -> None:
    """Have what is compiled shown from now on."""
    jax.monitoring.register_event_duration_secs_listener(_listen)


def _listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == _LOWERED:  # compiling is what comes next
        name = str(kwargs.get("fun_name", "a program"))
        progress.compiling(name.removeprefix("jit(").removesuffix(")").lstrip("_"))
    elif event == _COMPILED:
        progress.compiled(duration_secs)
