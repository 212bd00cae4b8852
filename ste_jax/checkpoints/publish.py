"""How does a directory that was built elsewhere take its place, or go away after a failure?"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from etils import epath

from ste_jax.system import files


def publish(building: Path, final: Path) -> None:
    """Makes `building` durable and renames it to `final`, replacing what was there."""
    files.sync_tree(building)
    replaced = final.with_name(f"{final.name}.partial-replaced")
    if final.exists():
        files.remove(replaced)
        final.rename(replaced)
    building.rename(final)
    files.sync_directory(final.parent)
    files.remove(replaced)


def discard(directory: epath.Path) -> None:
    """Removes the directory that a failed save has left."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            files.remove(directory)
        # Orbax gives up at the first failure; its other writes may still make files again.
        time.sleep(0.05)
        if not directory.exists():
            return


def write_failure(error: BaseException) -> str:
    """What a failed write says, in a few words."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    # TensorStore gives the operating system's number only in its text.
    _, found, rest = str(error).partition("os_error_code='")
    if found:
        return os.strerror(int(rest.partition("'")[0]))
    return brief(error)


def brief(error: BaseException) -> str:
    """An error's type and the beginning of what it says, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
