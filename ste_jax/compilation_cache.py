"""Where are compiled programs kept?

In JAX's persistent cache, on by default, in a place that outlives a preemption: `$STE_CACHE`, else
`~/.cache/ste_jax`. `JAX_COMPILATION_CACHE_DIR` has the last word.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax


def enable() -> None:
    """Switch the persistent compilation cache on."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("STE_CACHE") or Path.home() / ".cache" / "ste_jax").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
