"""How does a command begin: alone, or as one of several processes?

What a shell sets for JAX is looked at before JAX is loaded, so this imports nothing heavy itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ste_jax.system import preemption, progress
from ste_jax.system.jax_settings import settle

if TYPE_CHECKING:
    from ste_jax.parallel.processes import Processes


def alone() -> None:
    """Begin a command of one process: compiled programs are kept."""
    _settle()


def together(
    coordinator: str | None,
    processes: int | None,
    process_id: int | None,
    *,
    automatic: bool,
    check: Callable[[], object] = lambda: None,
) -> Processes:
    """Begin a command that may be one of several processes. Raises as
    `parallel.processes.initialize`. `check` refuses what no other process is needed for: it is
    called when JAX is set up, and before the processes meet."""
    _settle()  # before JAX is loaded
    check()
    from ste_jax.parallel.processes import initialize

    joined = initialize(coordinator, processes, process_id, automatic=automatic)
    preemption.install()  # after JAX, whose own handler of SIGTERM would take its place
    return joined


def _settle() -> None:
    with progress.doing("loading JAX"):
        settle()
