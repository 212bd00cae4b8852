"""Can an endpoint be asked as its knobs say?

What is refused here may hold a password or a key, so nothing of it is repeated.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from ste_jax.config.schema import EndpointKnobs
from ste_jax.errors import RequestError

LEAVABLE = (
    "seed",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "ignore_eos",
    "chat_template_kwargs",
)
"""What requests to an endpoint hold besides the messages, and some endpoints refuse. Without its
`seed` an answer is drawn anew each time, without `chat_template_kwargs` a role's
`template_arguments` are not heard of; of the others the endpoint's own values hold."""

_LONGEST = 1e6
"""Seconds: what a clock takes."""


def check_endpoint(knobs: EndpointKnobs, name: str = "NAME") -> None:
    """Look at the knobs of the endpoint of that name.

    Raises:
      RequestError: they will not do; names the knob.
    """
    where = f"endpoints.{name}"
    _check_url(knobs.url, where)
    if knobs.key_variable and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", knobs.key_variable):
        raise RequestError(
            f"{where}.key_variable is no name of an environment variable; put the key into a "
            "variable and name that here, never the key itself"
        )
    seconds = (knobs.timeout, knobs.deadline)
    if knobs.concurrency < 1 or knobs.retries < 0 or knobs.max_bytes < 1:
        raise RequestError(
            f"{where}: concurrency is at least 1, max_bytes too, and retries at least 0"
        )
    if not all(0 < each <= _LONGEST for each in seconds):
        raise RequestError(f"{where}: timeout and deadline are above 0, and at most {_LONGEST:g}")
    for field in knobs.leave_out:
        if field not in LEAVABLE:
            raise RequestError(
                f"{where}.leave_out names {field!r}, which is none of {', '.join(LEAVABLE)}"
            )


def _check_url(url: str, where: str) -> None:
    fault = "must be http(s)://HOST[:PORT]/PATH, up to and with the version, as http://host:8000/v1"
    try:
        parts = urlsplit(url)
        port_good = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_good = SplitResult("", "", "", "", ""), False
    if "@" in (parts.netloc or url):
        raise RequestError(
            f"{where}.url holds a user or a password, which would be kept with the run; leave it "
            "out, put the key into an environment variable and name that in key_variable"
        )
    spaced = any(letter.isspace() or not letter.isprintable() for letter in url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_good or spaced:
        raise RequestError(f"{where}.url {fault}")
    if any(mark in url for mark in "?#;"):
        raise RequestError(f"{where}.url {fault}; nothing may stand behind ?, # or ;")
    if parts.path.rstrip("/").endswith("/completions"):
        raise RequestError(f"{where}.url {fault}; /chat/completions is added to it")
