"""How is an endpoint's key kept out of what is shown and kept?

A server may send the key back: whole or in part, in an error or in an answer, plain or encoded.
Everything that came from the server is searched for it here before it is used.
"""

from __future__ import annotations

import base64
import json
import re
import string
from urllib.parse import quote

HIDDEN = "[the key]"
_RUN = 12
"""How many characters of a key in a row count as a part of it."""
_SHORT = 8
"""A key of fewer characters is only looked for as a whole word, and not encoded."""
_NO_SECRETS = frozenset(
    ("", "empty", "none", "null", "dummy", "no-key", "nokey", "not-needed", "not needed", "test")
    + (
        "key",
        "api-key",
        "api_key",
        "apikey",
        "token",
        "secret",
        "password",
        "placeholder",
        "unused",
    )
    + ("ollama", "lm-studio", "vllm", "sglang", "llama.cpp", "local", "localhost", "foo", "bar")
    + ("sk-no-key-required", "token-abc123", "default", "anything", "changeme", "fake", "n/a")
)
"""Words that people set as the key where a server needs none; answers may well hold them."""
_GUESSED = 3
"""A key of so few characters is no secret either."""
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Secret:
    """A key to be kept secret. A key that is no secret (as `none`) is found nowhere."""

    def __init__(self, key: str) -> None:
        self._word: re.Pattern[str] | None = None
        self._runs: dict[int, set[str]] = {}
        if key.lower() in _NO_SECRETS or len(key) <= _GUESSED:
            return
        if len(key) < _SHORT:
            self._word = re.compile(rf"(?<![0-9A-Za-z]){re.escape(key)}(?![0-9A-Za-z])")
            return
        for form in _forms(key):
            text = form.translate(_LOWER)
            size = min(_RUN, len(text))
            runs = {text[start : start + size] for start in range(len(text) - size + 1)}
            self._runs.setdefault(size, set()).update(runs)

    def is_in(self, text: str) -> bool:
        """Whether a text holds the key, or a part that gives it away."""
        return bool(self._spans(text))

    def hide(self, text: str) -> str:
        """The text without the key."""
        shown, end = [], 0
        for first, last in self._spans(text):
            shown += [text[end:first], HIDDEN]
            end = last
        return "".join([*shown, text[end:]])

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """The places of the key, from left to right, without overlaps."""
        if self._word is not None:
            return [match.span() for match in self._word.finditer(text)]
        folded = text.translate(_LOWER) if self._runs else ""
        found = [
            (start, start + size)
            for size, runs in self._runs.items()
            for start in range(len(folded) - size + 1)
            if folded[start : start + size] in runs
        ]
        spans: list[tuple[int, int]] = []
        for first, last in sorted(found):
            if spans and first <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(last, spans[-1][1]))
            else:
                spans.append((first, last))
        return spans


def _forms(key: str) -> set[str]:
    """The key in plain text, and as headers, addresses and JSON write it."""
    data = key.encode()
    forms = {key, quote(key, safe=""), quote(key), json.dumps(key)[1:-1], data.hex()}
    for before in range(3):  # within a longer text in base64, as in Basic authentication
        encoded = base64.b64encode(bytes(before) + data).decode()
        sure = encoded[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
        forms |= {sure, sure.replace("+", "-").replace("/", "_")}
    return forms
