"""Which of JAX's settings hold, whatever the environment says?

A user's shell may set JAX up for other work. What would change results without a word, or break
programs that are right, is set aside when a command starts, before JAX is loaded, and that is told.
What says where and how to compile (`XLA_FLAGS`, `JAX_DISABLE_MOST_OPTIMIZATIONS`), and where to
keep and log things, is the user's.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ste_jax.errors import RequestError

PINNED: dict[str, Any] = {
    # Types: what is computed in which.
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    # Random numbers: a sample is that of its key.
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
    # Checks that take what is right for a fault: a mask is infinite, an unused place no number.
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_debug_key_reuse": False,
    "jax_check_tracer_leaks": False,
    "jax_enable_checks": False,
}
"""Settings, and the values that JAX itself begins with."""
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
"""Settings of the same kinds whose first value is another from version to version."""
TOLD = "jax_default_matmul_precision"
"""It changes how sums are rounded, and is the user's to choose."""
_TRUE, _FALSE = ("1", "true", "t", "yes", "y", "on"), ("", "0", "false", "f", "no", "n", "off")


def settle() -> None:
    """Set JAX up for a command, and tell of each setting of the user's that is set aside.

    Raises:
      RequestError: JAX cannot read what is left of the environment's settings.
    """
    for name in (*PINNED, *LEFT_TO_JAX):
        variable = name.upper()
        value = os.environ.pop(variable, None)
        if value is not None and not _same(value, PINNED.get(name)):
            _tell(f"{variable}={value} is set aside: this project's programs run without it")
    precision = os.environ.get(TOLD.upper())
    if precision:
        _tell(
            f"{TOLD.upper()}={precision} holds: sums are rounded otherwise, so that results may "
            "differ from those without it"
        )
    try:
        import jax
    except ValueError as error:
        told = " ".join(str(error).split())
        raise RequestError(f"JAX cannot read its settings: {told}; mend or unset it") from error

    from ste_jax.system import compilation_cache

    for name, value in PINNED.items():  # where JAX was there before us
        if getattr(jax.config, name, value) != value:
            jax.config.update(name, value)
    compilation_cache.enable()


def _same(text: str, value: Any) -> bool:
    """Whether an environment variable's text is a setting's value."""
    if isinstance(value, bool):
        return text.lower() in (_TRUE if value else _FALSE)
    return text == str(value)


def _tell(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
