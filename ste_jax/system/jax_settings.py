"""Which of JAX's settings hold, whatever the environment says?

A user's shell may set JAX up for other work. Settings that would silently change results, or break
correct programs, are set aside when a command starts, before JAX is loaded, with a note. Settings
of where and how to compile (`XLA_FLAGS`, `JAX_DISABLE_MOST_OPTIMIZATIONS`), and of where to keep
and log things, are left to the user.
"""

from __future__ import annotations

import os
from typing import Any

from ste_jax.system import progress
from ste_jax.system.errors import RequestError

PINNED: dict[str, Any] = {
    # Types of arrays.
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    # Random numbers: a key must always give the same sample.
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
    "jax_enable_custom_prng": False,
    "jax_legacy_prng_key": "allow",
    # Whether programs are compiled and run.
    "jax_disable_jit": False,
    "jax_no_tracing": False,
    "jax_no_execution": False,
    # Checks that would fail on correct values: masks are infinite, unused places are not numbers.
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_debug_key_reuse": False,
    "jax_check_tracer_leaks": False,
    "jax_enable_checks": False,
}
"""Settings that are held at the values that JAX itself starts with."""
LEFT_TO_JAX = (
    "jax_allow_f16_reductions",
    "jax_array_garbage_collection_guard",
    "jax_compiler_enable_remat_pass",
    "jax_default_dtype_bits",
    "jax_error_checking_behavior_divide",
    "jax_error_checking_behavior_nan",
    "jax_error_checking_behavior_oob",
    "jax_exec_time_optimization_effort",
    "jax_explicit_x64_dtypes",
    "jax_mutable_array_checks",
    "jax_optimization_level",
    "jax_pallas_poison_buffers",
    "jax_softmax_custom_jvp",
    "jax_thread_guard",
    "jax_transfer_guard",
    "jax_transfer_guard_device_to_device",
    "jax_transfer_guard_device_to_host",
    "jax_transfer_guard_host_to_device",
    "jax_use_direct_linearize",
)
"""Settings of the same kinds whose first value differs between versions of JAX."""
NOTED = "jax_default_matmul_precision"
"""This setting changes how sums are rounded. It is left to the user, with a note."""
_TRUE, _FALSE = ("1", "true", "t", "yes", "y", "on"), ("", "0", "false", "f", "no", "n", "off")


def settle() -> None:
    """Set JAX up for a command, with a note of each of the user's settings that is set aside.

    Raises:
      RequestError: JAX cannot read the settings that are left in the environment.
    """
    for name in (*PINNED, *LEFT_TO_JAX):
        variable = name.upper()
        value = os.environ.pop(variable, None)
        if value is not None and not _same(value, PINNED.get(name)):
            _note(f"{variable}={value} is set aside: this project's programs run without it")
    precision = os.environ.get(NOTED.upper())
    if precision:
        _note(
            f"{NOTED.upper()}={precision} holds: sums are rounded otherwise, so that results may "
            "differ from those without it"
        )
    try:
        import jax
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"JAX cannot read its settings: {reason}; mend or unset it") from error

    from ste_jax.system import compilation_cache, compiling

    for name, value in PINNED.items():  # in case JAX was already imported
        if getattr(jax.config, name, value) != value:
            jax.config.update(name, value)
    compilation_cache.enable()
    compiling.watch()


def require() -> None:
    """Look at JAX's settings where a program that is not ours has loaded it and set it up: they are
    its own, and never changed here. Compiled programs are kept, unless it keeps them elsewhere.

    Raises:
      RequestError: a setting would change results without a word, or break programs that are right.
    """
    import jax

    from ste_jax.system import compilation_cache, compiling

    for name, value in PINNED.items():
        there = getattr(jax.config, name, value)
        if there != value:
            raise RequestError(
                f"{name} is {there} in this process, and this project's programs need {value}; set "
                f"it with jax.config.update({name!r}, {value!r}), or work in a process of its own"
            )
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        compilation_cache.enable()
    compiling.watch()


def _same(text: str, value: Any) -> bool:
    """Whether an environment variable's text is a setting's value."""
    if isinstance(value, bool):
        return text.lower() in (_TRUE if value else _FALSE)
    return text == str(value)


def _note(text: str) -> None:
    progress.note(f"note: {text}")
