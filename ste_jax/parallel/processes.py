"""How do the processes of one run meet?

They meet in JAX's coordination service, a key-value store on the host. They never wait inside a
collective for work that one of them may take hours to do. A meeting that a process misses ends with
an error that names this process.

A meeting has one outcome: all processes have met, or all stop. So whatever follows it, a collective
or a save of Orbax, is begun by all of them or by none.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import jax

from ste_jax.system import preemption, progress
from ste_jax.system.errors import Preempted, RequestError, SteError, WorkError

MEETING_TIMEOUT_S = 24 * 3600.0
"""How many seconds a process waits for the others; a dead one is noticed much sooner, by its
heartbeat."""
COORDINATOR_TIMEOUT_S = 300.0
"""How many seconds process 0 may take to appear, as in JAX itself."""
_ADDRESS, _BIND_ADDRESS = "JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS"
_POLL_MS = 2000
_LEFT_KEY = "ste/left"
_OUTCOME = "outcome"
_meetings = itertools.count(1)
"""The number of this process's next meeting, since names of meetings may be used again."""


@dataclass(frozen=True)
class Processes:
    """This process among all processes of the run. With one process every meeting is trivial.

    All processes must call the methods in the same order: their meetings are numbered.
    """

    index: int = 0
    count: int = 1
    timeout_s: float = MEETING_TIMEOUT_S

    @property
    def first(self) -> bool:
        """Whether this is process 0, which does the work that is not divided."""
        return self.index == 0

    def gather(self, name: str, value: Any) -> list[Any]:
        """Every process's JSON value, in process order, on every process.

        It returns on every process or raises on every one, also on one that comes when the others
        have stopped waiting.

        Raises:
          WorkError: a process did not come within `timeout_s`; names it.
          Preempted: this process, or another, was asked to stop while waiting.
        """
        if self.count == 1:
            return [value]
        meeting = f"ste/{next(_meetings)}/{name}"
        outcome = f"{meeting}/{_OUTCOME}"
        client = _client()
        client.key_value_set(f"{meeting}/{self.index}", json.dumps(value))
        found: dict[int, Any] = {self.index: value}
        with progress.doing(f"waiting for the other processes ({name})"):
            self._await(meeting, name, found)
        if not _set_once(client, outcome, None):
            _look_for_notice(client, outcome)
        return [found[index] for index in range(self.count)]

    def _await(self, meeting: str, name: str, found: dict[int, Any]) -> None:
        """Take the value of every process into `found`. Raises as `gather`."""
        client, outcome = _client(), f"{meeting}/{_OUTCOME}"
        deadline = time.monotonic() + self.timeout_s
        for index in range(self.count):
            while index not in found:
                text = _get(client, f"{meeting}/{index}")
                if text is not None:
                    found[index] = json.loads(text)
                    continue
                _look_for_notice(client, outcome)
                _look_for_notice(client, _LEFT_KEY)
                failure = self._impatience(client, meeting, name, deadline)
                if failure is not None and _set_once(client, outcome, self._notice(failure)):
                    raise failure

    def barrier(self, name: str) -> None:
        """Wait until every process is here. Raises as `gather`."""
        self.gather(name, None)

    def from_first(self, name: str, make: Callable[[], Any]) -> Any:
        """Calls `make` on process 0 and gives its result (JSON) to all. Raises as `gather`.

        An error of process 0 is raised on every process, with the same words.
        """
        if self.count == 1:
            return make()
        outcome: dict[str, Any] = {}
        failure: Exception | None = None
        if self.first:
            try:
                outcome = {"value": make()}
            except Exception as error:  # sent to the others, then raised here
                failure = error
                outcome = {"error": str(error), "kind": type(error).__name__}
        try:
            of_first = self.gather(name, outcome)[0]
        finally:
            if failure is not None:
                raise failure
        if "error" in of_first:
            _raise(of_first["kind"], f"process 0: {of_first['error']}")
        return of_first["value"]

    def leave(self, error: Exception) -> None:
        """Say to the other processes why this one stops, so that they do not wait for it."""
        if self.count > 1:
            notice = self._notice(error)
            with contextlib.suppress(Exception):  # the others may be gone: the error is what counts
                _client().key_value_set(_LEFT_KEY, json.dumps(notice), allow_overwrite=True)

    def _impatience(self, client: Any, meeting: str, name: str, deadline: float) -> SteError | None:
        """Why this process would wait no longer; None if it waits on."""
        if preemption.requested():
            return Preempted(preemption.STOPPED)
        if time.monotonic() > deadline:
            missing = self._missing(client, meeting)
            return WorkError(f"process {missing} did not reach {name!r} in {self.timeout_s}s")
        return None

    def _notice(self, error: Exception) -> dict[str, Any]:
        return {"process": self.index, "kind": type(error).__name__, "error": str(error)}

    def _missing(self, client: Any, prefix: str) -> str:
        absent = [i for i in range(self.count) if _get(client, f"{prefix}/{i}", 1) is None]
        return ", ".join(map(str, absent))


def initialize(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    automatic: bool = False,
) -> Processes:
    """Join the run's processes: by address and numbers, or as the TPU environment says.

    Raises:
      RequestError: only some of the three are given, or they do not fit together.
      WorkError: the coordinator cannot be reached, or process 0 cannot be it.
      Preempted: asked to stop while waiting for the coordinator.
    """
    given = [coordinator is not None, count is not None, index is not None]
    if not any(given) and not automatic:
        return Processes()
    if any(given) and not all(given):
        raise RequestError("--coordinator, --processes and --process-id belong together")
    if count is not None and index is not None and not 0 <= index < count:
        raise RequestError(f"--process-id {index} is not one of --processes {count} (from 0)")
    _check_meeting(coordinator, index)
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = f"at {coordinator}" if coordinator else "as the environment says"
    try:
        jax.distributed.initialize(coordinator, count, index)
    except Exception as error:  # of whatever kind: it is JAX's own
        reason = " ".join(str(error).split())[:300]
        raise WorkError(f"the processes could not meet {where}: {reason}") from error
    here = joined()
    if here.count > 1:
        preemption.stop_together()
    return here


def joined() -> Processes:
    """The processes that this one has joined, as JAX knows them; it alone where it joined none."""
    return Processes(index=jax.process_index(), count=jax.process_count())


def _check_meeting(coordinator: str | None, index: int | None) -> None:
    """Check the address where the processes meet: JAX would end the process if it were bad.

    Raises:
      RequestError, WorkError, Preempted: as `initialize`.
    """
    named = {
        "--coordinator": coordinator,
        _ADDRESS: None if coordinator else os.environ.get(_ADDRESS),
        _BIND_ADDRESS: os.environ.get(_BIND_ADDRESS),
    }
    for name, address in named.items():
        if address is not None:
            _split(name, address)
    if coordinator is None:
        return
    if index:
        _await_coordinator(coordinator)
        return
    place = os.environ.get(_BIND_ADDRESS)
    host, port = _split("--coordinator", place or coordinator)
    _check_free(host if place else "", port, place or coordinator)


def _split(name: str, address: str) -> tuple[str, int]:
    """Host and port of an address."""
    host, _, port = address.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not 1 <= number <= 65535 or (":" in host and not bracketed):
        raise RequestError(
            f"{name} is {address!r}, not HOST:PORT with a port from 1 to 65535, as "
            "10.0.0.1:1234 or [::1]:1234"
        )
    return host.strip("[]"), number


def _check_free(host: str, port: int, address: str) -> None:
    """Raises `WorkError` where process 0 cannot listen; an empty host means all addresses."""
    places = [(socket.AF_INET6, host or "::"), (socket.AF_INET, host or "0.0.0.0")]
    for family, place in places:
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((place, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise WorkError(
                    f"process 0 cannot listen at {address}: {error.strerror}; name another port "
                    "to all processes, or stop what listens there"
                ) from error


def _await_coordinator(address: str) -> None:
    """Returns once process 0 listens at the address."""
    host, port = _split("--coordinator", address)
    deadline = time.monotonic() + COORDINATOR_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline:
                raise WorkError(
                    f"process 0 is not to be found at {address} after "
                    f"{COORDINATOR_TIMEOUT_S:g} s ({error}); start it there, or mend the address"
                ) from error
        preemption.poll()
        time.sleep(0.2)


def _look_for_notice(client: Any, key: str) -> None:
    """Raises the error for which another process stopped, if its notice is at `key`."""
    notice = json.loads(_get(client, key, wait_ms=50) or "null")
    if notice is not None:
        _raise(notice["kind"], f"process {notice['process']} stopped: {notice['error']}")


def _set_once(client: Any, key: str, value: Any) -> bool:
    """Sets a key that no process has set; returns False, and sets nothing, if one has."""
    try:
        client.key_value_set(key, json.dumps(value))
    except Exception as error:
        if "ALREADY_EXISTS" in str(error):
            return False
        raise WorkError(f"the coordination service is gone: {str(error)[:200]}") from error
    return True


def _raise(kind: str, message: str) -> NoReturn:
    kinds: dict[str, type[SteError]] = {"RequestError": RequestError, "Preempted": Preempted}
    raise kinds.get(kind, WorkError)(message)


def _client() -> Any:
    from jax._src import distributed  # the public face of the client is only this state

    return distributed.global_state.client


def _get(client: Any, key: str, wait_ms: int = _POLL_MS) -> str | None:
    try:
        return str(client.blocking_key_value_get(key, wait_ms))
    except Exception as error:
        if "DEADLINE_EXCEEDED" in str(error) or "NOT_FOUND" in str(error):
            return None
        raise WorkError(f"the coordination service is gone: {str(error)[:200]}") from error
