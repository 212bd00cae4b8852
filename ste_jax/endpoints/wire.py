"""How is one request sent to an endpoint and its answer received, within limits of time and size?

An answer has a deadline and a largest size, whatever the server does: one that sends a byte a
second, or without end, costs its row. No text of a server leaves this module with the key in it.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests
from urllib3.exceptions import MaxRetryError, NewConnectionError

from ste_jax.config import from_plain
from ste_jax.config.schema import EndpointKnobs
from ste_jax.endpoints.secret import Secret
from ste_jax.system.errors import RequestError

_PIECE = 1024
_QUOTED = 500
"""How many characters of a server's text a message repeats, at the most."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoAnswer(Exception):
    """There was no answer, but there may be one soon. `reached` says whether the server was
    reached."""

    def __init__(self, reason: str, *, reached: bool) -> None:
        super().__init__(reason)
        self.reached = reached


class UnusableAnswer(Exception):
    """The server's answer to this request cannot be used, and it would not be better next time."""


class Misconfigured(Exception):
    """No request can be sent as the endpoint is configured."""


class Wire:
    """Sends requests to one endpoint. May be used by many threads at once."""

    def __init__(self, knobs: EndpointKnobs) -> None:
        """Raises `RequestError` for knobs that cannot be used, or for a key's variable that holds
        none."""
        from_plain.check(knobs, "endpoints.NAME")
        self._knobs = knobs
        key = _key(knobs)
        self.secret = Secret(key)
        self._session = requests.Session()
        pool = requests.adapters.HTTPAdapter(pool_maxsize=knobs.concurrency)
        self._session.mount(knobs.url, pool)
        self._session.auth = _Bearer(key)
        # urllib3's warnings quote the server's text, which may hold the key.
        logging.getLogger("urllib3").setLevel(logging.ERROR)

    def post(self, payload: dict[str, Any]) -> Reply:
        """The endpoint's answer to a request, of whatever status.

        Raises:
          NoAnswer, UnusableAnswer, Misconfigured: there is no answer; their texts say why, without
            the key.
        """
        # A thread of its own, which is left behind at the deadline: a server can drag out every
        # part of an exchange, and not all of them can be interrupted.
        found: queue.SimpleQueue[Reply | Exception] = queue.SimpleQueue()
        end = time.monotonic() + self._knobs.deadline

        def work() -> None:
            try:
                found.put(self._exchange(payload, end))
            except Exception as error:
                found.put(error)

        threading.Thread(target=work, name="endpoint-exchange", daemon=True).start()
        try:
            reply = found.get(timeout=self._knobs.deadline)
        except queue.Empty:
            reply = self._too_late()
        if isinstance(reply, Exception):
            raise self._as_ours(reply) from None  # the cause may hold the key
        return reply

    def quoted(self, text: str) -> str:
        """A server's text as it may be repeated: short, and without the key."""
        return self.clean(text)[:_QUOTED]

    def clean(self, text: str) -> str:
        """A message without the key, however it is written in there."""
        plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), text)
        joined = plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self.secret.hide(joined)

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def _exchange(self, payload: dict[str, Any], end: float) -> Reply:
        with self._session.post(
            self._knobs.url.rstrip("/") + "/chat/completions",
            json=payload,
            headers={"Accept-Encoding": "identity"},
            timeout=(min(30.0, self._knobs.timeout), self._knobs.timeout),
            allow_redirects=False,  # the key is for this address alone
            stream=True,
        ) as response:
            body = bytearray()
            for piece in response.iter_content(_PIECE):
                body += piece
                if len(body) > self._knobs.max_bytes:
                    raise UnusableAnswer(
                        f"the answer has more than {self._knobs.max_bytes} bytes, which is the "
                        "endpoint's max_bytes"
                    )
                if time.monotonic() > end:
                    raise self._too_late()
            return Reply(response.status_code, response.headers, bytes(body))

    def _too_late(self) -> UnusableAnswer:
        return UnusableAnswer(
            f"no whole answer came within {self._knobs.deadline:g} s, which is the endpoint's "
            "deadline"
        )

    def _as_ours(self, error: Exception) -> Exception:
        """The failure of an exchange as one of our exceptions."""
        if isinstance(error, UnusableAnswer):
            return error
        reason = self.quoted(f"{type(error).__name__}: {error}")
        if isinstance(error, requests.exceptions.ContentDecodingError):
            return UnusableAnswer(f"the answer cannot be unpacked ({reason})")
        if isinstance(error, requests.exceptions.SSLError):
            return Misconfigured(reason)
        broken = (requests.ConnectionError, requests.Timeout)
        if isinstance(error, (*broken, requests.exceptions.ChunkedEncodingError)):
            return NoAnswer(reason, reached=_reached(error))
        if isinstance(error, requests.exceptions.InvalidJSONError):
            return UnusableAnswer(f"the request cannot be written as JSON ({reason})")
        if isinstance(error, requests.RequestException):
            return Misconfigured(reason)
        return NoAnswer(reason, reached=True)


def _reached(error: Exception) -> bool:
    """Whether a request that failed had reached the server."""
    if isinstance(error, (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError)):
        return False
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else None
    return not isinstance(reason, NewConnectionError)


def _key(knobs: EndpointKnobs) -> str:
    if not knobs.key_variable:
        return ""
    key = os.environ.get(knobs.key_variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise RequestError(
            f"endpoint {knobs.url}: the environment variable {knobs.key_variable} is to "
            "hold its key, and is not set or holds something else; set it, or name none "
            "(key_variable: '')"
        )
    return key


class _Bearer(requests.auth.AuthBase):
    """Puts the key into the header, if there is one, and keeps `.netrc` from replacing it."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request
