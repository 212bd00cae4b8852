"""Where are compiled programs kept?

They are kept in JAX's persistent cache, on by default, in a place that outlives a preemption:
`$STE_CACHE`, else `~/.cache/ste_jax`. `JAX_COMPILATION_CACHE_DIR` overrides both.
"""

from __future__ import annotations

import os

import jax


def enable() -> None:
    """Switch the persistent compilation cache on, where there is a place for it."""
    place = os.environ.get("STE_CACHE") or "~/.cache/ste_jax"
    # A container may know no user, and so no home: `expanduser` then leaves the place as it is.
    home = os.path.expanduser(place)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and not home.startswith("~"):
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "compiled"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
