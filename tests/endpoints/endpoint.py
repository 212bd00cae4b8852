"""A small server that speaks OpenAI's chat completions as a test says, and records requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Any, dict[str, str]]
"""(status, body, headers)"""


def chat(text: str, reason: str = "stop", **choice: Any) -> Answer:
    """An answer as vLLM gives it."""
    message = {"role": "assistant", "content": text}
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 5},
    }
    return (
        200,
        {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": reason, **choice}],
            "usage": usage,
        },
        {},
    )


@dataclass
class Endpoint:
    """What the server has seen."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_once: int = 0
    """The most requests that were under way at the same time."""


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[Endpoint]:
    """Serves `answer(payload, how many came before)` at `Endpoint.url`."""
    seen, lock, running = Endpoint(), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen.asked)
                seen.asked.append(payload)
                seen.headers.append(dict(self.headers))
                seen.paths.append(self.path)
                running[0] += 1
                seen.at_once = max(seen.at_once, running[0])
            status, body, headers = answer(payload, number)
            with lock:
                running[0] -= 1
            if status == 0:  # hang up
                self.close_connection = True
                self.connection.close()
                return
            if not isinstance(body, bytes):
                body = (body if isinstance(body, str) else json.dumps(body)).encode()
            data = body
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
