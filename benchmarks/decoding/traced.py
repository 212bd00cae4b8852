"""What did the profiler see of a run?"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

HOST_EVENTS = 3
"""The level at which XLA tells of every operation that it runs on CPU."""


def events(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """The events of the profiler's trace, as Chrome's trace format has them, while `run` runs."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = HOST_EVENTS
    with tempfile.TemporaryDirectory() as place:
        with jax.profiler.trace(place, profiler_options=options):
            run()
        file = next(Path(place).rglob("*.trace.json.gz"))
        found: list[dict[str, Any]] = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return found
