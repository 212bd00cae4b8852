"""Was this process asked to stop?

A TPU machine that is taken away sends SIGTERM first, and a person presses Ctrl-C (SIGINT). Both
stop a command in good order. While work is in hand (`in_hand`) a signal only sets a flag; every
loop polls it where its unfinished work can be kept, and raises `Preempted`, which ends the process.
At any other time, as while JAX starts, programs are compiled or weights are read, nobody polls and
there is nothing to lose: then the signal ends the process at once. One of several processes never
ends so: the others must hear of it. The exit status is 75 after SIGTERM and 130 after SIGINT: run
the same command again. A second SIGINT, a second later or more, ends the process at once in any
case.

A thread takes the signals, since Python calls a handler only between two steps of the main thread,
which may be inside a compiler for minutes, and since an exception from a handler is swallowed where
C code has called Python.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from ste_jax.system import progress
from ste_jax.system.errors import Preempted

STOPPED = "asked to stop; finished work is kept: run the same command again"
"""What `Preempted` says where a stop was requested."""
INTERRUPTED = 130
"""The exit status after SIGINT, as a shell has it."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_TWICE_S = 1.0
"""Seconds that must lie between two SIGINTs: a terminal and a launcher may both pass one on."""
_SAID_WITHIN_S = 1.0

_flag = threading.Event()
_works: list[Callable[[], bool]] = []
"""What is in hand: each says whether there is anything yet that a stop at once would lose."""
_deciding = threading.Lock()
"""Held while a signal is taken: work that ends then, or after it, still polls the flag."""
_first_signal = 0
_pressed: float | None = None
"""When the first SIGINT came."""
_joined = False
_wakeup_fd = -1


def install() -> None:
    """Take SIGTERM and SIGINT as requests to stop; call it again after another library has put its
    own handler. A signal that is ignored stays so. In another thread than the main one, whose alone
    signals are, nothing is done."""
    global _wakeup_fd
    if threading.current_thread() is not threading.main_thread():
        return
    if _wakeup_fd < 0:
        read, _wakeup_fd = os.pipe()
        os.set_blocking(_wakeup_fd, False)
        threading.Thread(target=_listen, args=(read,), name="signals", daemon=True).start()
        os.register_at_fork(after_in_child=_uninstall)
    signal.set_wakeup_fd(_wakeup_fd, warn_on_full_buffer=False)
    for each in _SIGNALS:
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, _leave_it_to_the_thread)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Take the signals in the `with` block, and leave them as they were behind it."""
    global _first_signal, _pressed, _joined
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's alone
        return
    handlers = {each: signal.getsignal(each) for each in _SIGNALS}
    wakeup_fd = signal.set_wakeup_fd(-1)
    install()
    try:
        yield
    finally:
        for each, handler in handlers.items():
            if handler is not None:
                signal.signal(each, handler)
        signal.set_wakeup_fd(wakeup_fd)
        _flag.clear()
        _first_signal, _pressed, _joined = 0, None, False


def _uninstall() -> None:
    """Leave the signals of a forked process to the system."""
    signal.set_wakeup_fd(-1)
    for each in _SIGNALS:
        if signal.getsignal(each) == _leave_it_to_the_thread:
            signal.signal(each, signal.SIG_DFL)


def _leave_it_to_the_thread(signum: int, frame: FrameType | None) -> None:
    """With a handler in Python, the system writes the signal's number to the thread's pipe."""


def _listen(read: int) -> None:
    while True:
        for number in os.read(read, 64):
            if number in _SIGNALS:
                _take(number)


def _take(number: int) -> None:
    global _first_signal, _pressed
    pressed, now = _pressed, time.monotonic()
    if number == signal.SIGINT and pressed is not None and now - pressed > _TWICE_S:
        _end("aborted; finished work is kept: run the same command again", INTERRUPTED)
    if number == signal.SIGINT and pressed is None:
        _pressed = now
    with _deciding:
        _first_signal = _first_signal or number
        known = _flag.is_set()  # then what is being saved must not be cut off
        poll_comes = known or _joined or any(begun() for begun in _works)
        if poll_comes:
            _flag.set()
    if not poll_comes:
        _end("stopped; finished work is kept: run the same command again", exit_status())
    if not known or (number == signal.SIGINT and pressed is None):
        abort = "; press Ctrl-C again to abort" if number == signal.SIGINT else ""
        _say(progress.warn, f"stopping: work in hand is being saved{abort}")


def _end(text: str, status: int) -> NoReturn:
    _say(progress.error, f"ste: {text}", status=status)
    os._exit(status)


def _say(show: Callable[..., None], text: str, **fields: Any) -> None:
    """Print a line, but do not wait for it: the main thread may be in the midst of a line that
    nobody reads, and never end it."""
    thread = threading.Thread(target=show, args=(text,), kwargs=fields, daemon=True)
    thread.start()
    thread.join(_SAID_WITHIN_S)


@contextlib.contextmanager
def in_hand(begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """In the `with` block work is in hand, once `begun` says so: a signal sets the flag, and the
    block must poll it.

    Raises:
      Preempted: a stop was requested that the block did not come to poll.
    """
    with _deciding:
        _works.append(begun)
    try:
        yield
    finally:
        with _deciding:
            _works.remove(begun)
    if not _joined:  # several processes agree on it when they meet
        poll()


def stop_together() -> None:
    """From now on this process is one of several, and never stops without telling the others: a
    signal only sets the flag."""
    global _joined
    _joined = True


def request() -> None:
    """Ask this process to stop, as SIGTERM would while work is in hand."""
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


def exit_status() -> int:
    """The exit status of a process that was stopped."""
    return INTERRUPTED if _first_signal == signal.SIGINT else Preempted.exit_status
