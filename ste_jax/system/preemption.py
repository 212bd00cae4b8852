"""Was this process asked to stop?

A TPU machine that is taken away sends SIGTERM first. The signal only sets a flag; every loop polls
it where its unfinished work can be kept, and raises `Preempted`, which ends the process with status
75: run the same command again.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

from ste_jax.system.errors import Preempted

STOPPED = "asked to stop; finished work is kept: run the same command again"
"""What `Preempted` says where a stop was requested."""
_flag = threading.Event()


def install() -> None:
    """Take SIGTERM as a request to stop in good order. Only the main thread may call this."""

    def note(signum: int, frame: FrameType | None) -> None:
        _flag.set()

    signal.signal(signal.SIGTERM, note)


def request() -> None:
    """Ask this process to stop, as the signal would."""
    _flag.set()


def requested() -> bool:
    """Whether this process has been asked to stop."""
    return _flag.is_set()


def poll() -> None:
    """Stop here if asked to.

    Raises:
      Preempted: a stop was requested.
    """
    if requested():
        raise Preempted(STOPPED)
