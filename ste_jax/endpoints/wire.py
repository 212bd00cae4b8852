"""How does one request get to an endpoint, and its answer back, within bounds?

An answer has a deadline and a size, whatever the server does: one that sends a byte a second, or
without end, costs its row. Nothing that a server says leaves here with the key in it.
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

from ste_jax.config.endpoint_check import check_endpoint
from ste_jax.config.schema import EndpointKnobs
from ste_jax.endpoints.secret import Secret
from ste_jax.errors import RequestError

_PIECE = 1024
_TOLD = 500
"""Characters of what a server says that are repeated."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Away(Exception):
    """There was no answer, which may be otherwise soon. `here`: the endpoint was reached."""

    def __init__(self, told: str, *, here: bool) -> None:
        super().__init__(told)
        self.here = here


class Unusable(Exception):
    """What this request got is no answer, and would be none again."""


class Misplaced(Exception):
    """No request can be sent as the endpoint is configured."""


class Wire:
    """Sends requests to one endpoint. May be used by many threads at once."""

    def __init__(self, knobs: EndpointKnobs) -> None:
        """Raises `RequestError` where the knobs will not do, or the key's variable holds none."""
        check_endpoint(knobs)
        self._knobs = knobs
        key = _key(knobs)
        self.secret = Secret(key)
        self._session = requests.Session()
        pool = requests.adapters.HTTPAdapter(pool_maxsize=knobs.concurrency)
        self._session.mount(knobs.url, pool)
        self._session.auth = _Bearer(key)
        # What urllib3 warns of it quotes from the server.
        logging.getLogger("urllib3").setLevel(logging.ERROR)

    def post(self, payload: dict[str, Any]) -> Reply:
        """The endpoint's answer to a request, of whatever status.

        Raises:
          Away, Unusable, Misplaced: there is none; they say why, without the key.
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
            raise self._told(reply) from None  # the cause may hold the key
        return reply

    def say(self, text: str) -> str:
        """What a server said, as it may be repeated: short, and without the key."""
        return self.clean(text)[:_TOLD]

    def clean(self, text: str) -> str:
        """A message without the key, however it is written in there."""
        plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), text)
        joined = plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self.secret.hide(joined)

    def close(self) -> None:
        """Lets go of the connections."""
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
                    raise Unusable(
                        f"the answer has more than {self._knobs.max_bytes} bytes, which is the "
                        "endpoint's max_bytes"
                    )
                if time.monotonic() > end:
                    raise self._too_late()
            return Reply(response.status_code, response.headers, bytes(body))

    def _too_late(self) -> Unusable:
        return Unusable(
            f"no whole answer came within {self._knobs.deadline:g} s, which is the endpoint's "
            "deadline"
        )

    def _told(self, error: Exception) -> Exception:
        """What an exchange failed by, in our words."""
        if isinstance(error, Unusable):
            return error
        told = self.say(f"{type(error).__name__}: {error}")
        if isinstance(error, requests.exceptions.ContentDecodingError):
            return Unusable(f"the answer cannot be unpacked ({told})")
        if isinstance(error, requests.exceptions.SSLError):
            return Misplaced(told)
        broken = (requests.ConnectionError, requests.Timeout)
        if isinstance(error, (*broken, requests.exceptions.ChunkedEncodingError)):
            return Away(told, here=_reached(error))
        if isinstance(error, requests.exceptions.InvalidJSONError):
            return Unusable(f"the request cannot be written as JSON ({told})")
        if isinstance(error, requests.RequestException):
            return Misplaced(told)
        return Away(told, here=True)


def _reached(error: Exception) -> bool:
    """Whether a failed request had got to the server."""
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
    """A key in the header, or none, which no `.netrc` replaces."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request
