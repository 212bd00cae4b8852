"""How do the processes of one run meet?

JAX's coordination service is all there is: a key-value store and barriers on the host. Processes
meet there, between stages, and never wait for each other inside a collective for what one of them
may take hours to do. A meeting that somebody misses ends with an error that names who.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax

from ste_jax.errors import Preempted, RequestError, SteError, WorkError
from ste_jax.system import preemption

MEETING_TIMEOUT_S = 24 * 3600.0
"""How long a process waits for the others; a dead one is noticed by its heartbeat long before."""
COORDINATOR_TIMEOUT_S = 300.0
"""How long process 0 may take to come, as in JAX itself."""
_ADDRESS, _BIND_ADDRESS = "JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS"
_POLL_MS = 2000
_LEFT_KEY = "ste/left"


@dataclass
class Processes:
    """This process among all of the run. With one process every meeting is trivial.

    All processes must call the methods in the same order: the calls are numbered.
    """

    index: int = 0
    count: int = 1
    timeout_s: float = MEETING_TIMEOUT_S
    _calls: int = field(default=0, init=False)

    @property
    def first(self) -> bool:
        """Whether this is process 0, which does what is global."""
        return self.index == 0

    def gather(self, name: str, value: Any) -> list[Any]:
        """Every process's JSON value, in process order, on every process.

        Raises:
          WorkError: somebody did not come within `timeout_s`; names who.
          Preempted: this process, or another, was asked to stop while waiting.
        """
        if self.count == 1:
            return [value]
        self._calls += 1
        prefix = f"ste/{self._calls}/{name}"
        client = _client()
        client.key_value_set(f"{prefix}/{self.index}", json.dumps(value))
        found: dict[int, Any] = {self.index: value}
        deadline = time.monotonic() + self.timeout_s
        for index in range(self.count):
            while index not in found:
                text = _get(client, f"{prefix}/{index}")
                if text is not None:
                    found[index] = json.loads(text)
                    continue
                preemption.poll()
                _look_for_leavers(client)
                if time.monotonic() > deadline:
                    missing = self._missing(client, prefix)
                    raise WorkError(
                        f"process {missing} did not reach {name!r} in {self.timeout_s}s"
                    )
        return [found[index] for index in range(self.count)]

    def barrier(self, name: str) -> None:
        """Wait until every process is here. Raises as `gather`."""
        self.gather(name, None)

    def from_first(self, name: str, make: Callable[[], Any]) -> Any:
        """What process 0 makes (JSON), on every process; the others wait. Raises as `gather`.

        An error of process 0 is raised by all, with its words.
        """
        if self.count == 1:
            return make()
        outcome: dict[str, Any] = {}
        failure: Exception | None = None
        if self.first:
            try:
                outcome = {"value": make()}
            except Exception as error:  # told to the others, then raised here
                failure = error
                outcome = {"error": str(error), "kind": type(error).__name__}
        told = self.gather(name, outcome)[0]
        if failure is not None:
            raise failure
        if "error" in told:
            _raise(told["kind"], f"process 0: {told['error']}")
        return told["value"]

    def leave(self, error: Exception) -> None:
        """Tell the others why this process goes, so that they do not wait for it in vain."""
        if self.count > 1:
            told = {"process": self.index, "kind": type(error).__name__, "error": str(error)}
            with contextlib.suppress(Exception):  # the others may be gone: the error is what counts
                _client().key_value_set(_LEFT_KEY, json.dumps(told), allow_overwrite=True)

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
      RequestError: only some of the three are given, or they will not do.
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
    return Processes(index=jax.process_index(), count=jax.process_count())


def _check_meeting(coordinator: str | None, index: int | None) -> None:
    """Look at the place where the processes meet: JAX ends the process where it will not do.

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
    """Raises `WorkError` where process 0 cannot listen; no host means all of this machine's."""
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
    """Returns once somebody listens there."""
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


def _look_for_leavers(client: Any) -> None:
    """Raises what another process left for."""
    text = _get(client, _LEFT_KEY, wait_ms=50)
    if text is not None:
        told = json.loads(text)
        _raise(told["kind"], f"process {told['process']} stopped: {told['error']}")


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
