"""How tests ask an endpoint that answers as they say."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ste_jax.config.schema import EndpointKnobs
from ste_jax.endpoints.openai import OpenAIGenerator
from ste_jax.generation import Completion, Request, Sampling
from tests.endpoints.endpoint import Answer, chat


def request(id: str, text: str = "Hi", **more: Any) -> Request:
    sampling = Sampling(max_new_tokens=9, temperature=0.7)
    return Request(id=id, messages=[{"role": "user", "content": text}], sampling=sampling, **more)


def ask(url: str, *rows: str, key_variable: str = "", **knobs: Any) -> dict[str, Completion]:
    values = {"url": url, "model": "m", "timeout": 10.0, "retries": 1, **knobs}
    generator = OpenAIGenerator(EndpointKnobs(key_variable=key_variable, **values))
    for row in rows:
        generator.submit(request(row, row))
    return {each.request_id: each for each in generator.completions()}


def by_row(answers: dict[str, Answer]) -> Callable[[dict[str, Any], int], Answer]:
    return lambda payload, _: answers.get(payload["messages"][0]["content"], chat("[[A]]"))


def message(content: Any, reason: Any = "stop", **more: Any) -> Answer:
    choice = {"message": {"content": content, **more}, "finish_reason": reason}
    return 200, {"choices": [choice]}, {}


@contextlib.contextmanager
def sending(pieces: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads one request per connection and sends what it likes."""
    server = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def one(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            with contextlib.suppress(OSError):
                pieces(connection)

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
    finally:
        stop.set()
        server.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
