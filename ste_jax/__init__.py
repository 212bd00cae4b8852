"""Self-Taught Evaluators in JAX: an LLM judge that trains itself, from one host to a TPU pod.

    judge = ste_jax.load_judge("runs/pico")
    verdict = judge(instruction, a, b, votes=8)   # .winner, .votes, .judgments

Importing this loads the version alone: each name below is fetched from its module when it is first
used. `docs/python.md` shows all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ste_jax.system.version import __version__ as __version__

__all__ = [
    "Config",
    "Judge",
    "RequestError",
    "Run",
    "SteError",
    "Verdict",
    "WorkError",
    "load_config",
    "load_judge",
    "open_run",
    "restore_parameters",
    "run_config",
]

if TYPE_CHECKING:
    from ste_jax.checkpoints.checkpoint import restore_parameters
    from ste_jax.commands.judge import Judge, Verdict, load_judge
    from ste_jax.config.load import load_config
    from ste_jax.config.schema import Config
    from ste_jax.pipeline.run_config import run_config
    from ste_jax.run.opened import Run, open_run
    from ste_jax.system.errors import RequestError, SteError, WorkError
else:
    _HOMES = {
        "checkpoints.checkpoint": ("restore_parameters",),
        "commands.judge": ("Judge", "Verdict", "load_judge"),
        "config.load": ("load_config",),
        "config.schema": ("Config",),
        "system.errors": ("RequestError", "SteError", "WorkError"),
        "pipeline.run_config": ("run_config",),
        "run.opened": ("Run", "open_run"),
    }

    def __getattr__(name):
        """Fetch a name of `__all__` from its module, once."""
        from importlib import import_module

        for module, names in _HOMES.items():
            if name in names:
                found = getattr(import_module(f"{__name__}.{module}"), name)
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
