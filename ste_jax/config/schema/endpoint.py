"""Which knobs does an endpoint have, and can a request be sent as they say?

A value that is refused here may hold a password or a key, so messages never repeat it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from ste_jax.system.errors import RequestError
from ste_jax.system.ranges import Count, OrNone, Scale

LEAVABLE = (
    "seed",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "ignore_eos",
    "chat_template_kwargs",
)
"""Fields of requests that some endpoints refuse, so that they can be left out. Without `seed` an
answer is drawn anew each time, without `chat_template_kwargs` a role's `template_arguments` have no
effect; for the others the endpoint uses its own values."""


@dataclass(frozen=True, kw_only=True)
class EndpointKnobs:
    """A model behind an OpenAI-compatible endpoint."""

    url: str
    """The address up to and with the version: `http://host:8000/v1`."""
    model: str
    """What the endpoint calls the model."""
    key_variable: str = ""
    """The environment variable that holds the key; empty: none is sent."""
    concurrency: Count = 32
    """How many requests each process has under way at once."""
    timeout: Scale = 600.0
    """How many seconds to wait for the next byte of an answer."""
    retries: OrNone = 6
    """How often a request that failed for a moment is sent again, after growing pauses."""
    deadline: Scale = 3600.0
    """Seconds for one whole answer; an answer that takes longer costs its row."""
    max_bytes: Count = 16_777_216
    """The most bytes of one answer; a larger one costs its row."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the most tokens of an answer."""
    leave_out: tuple[str, ...] = ()
    """Fields that are never sent, for an endpoint that refuses them, as `[seed]`: any of `seed`,
    `temperature`, `top_p`, `top_k`, `min_p`, `ignore_eos` and `chat_template_kwargs`."""

    def check(self, key: str) -> None:
        """Refuse an address, a key variable or fields with which no request can be sent."""
        _check_url(self.url, key)
        if self.key_variable and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.key_variable):
            raise RequestError(
                f"{key}.key_variable is no name of an environment variable; put the key into a "
                "variable and name that here, never the key itself"
            )
        for field in self.leave_out:
            if field not in LEAVABLE:
                raise RequestError(
                    f"{key}.leave_out names {field!r}, which is none of {', '.join(LEAVABLE)}"
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
