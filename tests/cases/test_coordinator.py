"""Where processes cannot meet, that is told in a sentence and at once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ste_jax.cli import main
from ste_jax.parallel import processes
from ste_jax.system.errors import RequestError, WorkError


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def never_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX itself is not to be asked: it would end the process."""

    def fail(*_: object) -> None:
        raise AssertionError("JAX was asked to meet")

    monkeypatch.setattr(processes.jax.distributed, "initialize", fail)


def test_a_port_that_is_taken(taken: int, tmp_path, capsys) -> None:
    words = ["run", "pico", "--dir", str(tmp_path / "run"), "--processes", "2"]
    words += ["--coordinator", f"127.0.0.1:{taken}", "--process-id", "0"]
    assert main(words) == 1
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert told.startswith(f"ste: process 0 cannot listen at 127.0.0.1:{taken}: Address already")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "address",
    ["localhost", "127.0.0.1:notaport", "127.0.0.1:", ":1234", "", "::1:80", "h:0", "h:65536",
     "h:-1", "h:1.5", "h: 80", "h:٣٣", "http://h", "h:" + "9" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("index", [0, 1])
def test_an_address_that_is_none(address: str, index: int, tmp_path, capsys) -> None:
    words = ["run", "pico", "--dir", str(tmp_path / "run"), "--processes", "2"]
    words += [f"--coordinator={address}", "--process-id", str(index)]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("ste: --coordinator is ") and "not HOST:PORT" in told


@pytest.mark.parametrize("name", ["JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS"])
def test_an_address_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "localhost:port")
    with pytest.raises(RequestError, match=f"{name} is 'localhost:port'"):
        processes.initialize(automatic=True)


def test_the_place_to_listen_at_may_differ(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", f"127.0.0.1:{taken}")
    with pytest.raises(WorkError, match=f"cannot listen at 127.0.0.1:{taken}"):
        processes.initialize("elsewhere:1", 2, 0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_process_0_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "COORDINATOR_TIMEOUT_S", 0.5)
    port = free_port()
    with pytest.raises(WorkError, match=rf"not to be found at 127\.0\.0\.1:{port} after 0\.5 s"):
        processes.initialize(f"127.0.0.1:{port}", 2, 1)
    with pytest.raises(WorkError, match=r"not to be found at nowhere\.invalid:80"):
        processes.initialize("nowhere.invalid:80", 2, 1)


def test_process_0_may_come_late() -> None:
    """Then JAX is asked, and here says so."""
    port, begun = free_port(), threading.Event()

    def late() -> None:
        time.sleep(0.4)
        with socket.create_server(("127.0.0.1", port)) as server:
            server.accept()
            begun.set()

    threading.Thread(target=late, daemon=True).start()
    with pytest.raises(WorkError, match="JAX was asked to meet"):
        processes._check_meeting(f"127.0.0.1:{port}", 1)
        assert begun.wait(10)
        processes.initialize(f"127.0.0.1:{free_port()}", 2, 0)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(max_size=12), st.text("0123456789", max_size=6))
def test_every_address_is_split_or_refused(host: str, port: str) -> None:
    try:
        found = processes._split("--coordinator", f"{host}:{port}")
    except RequestError:
        return
    assert found == (host.strip("[]"), int(port)) and 0 < found[1] < 65536
