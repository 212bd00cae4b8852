"""The key of an endpoint stays where it is."""

from __future__ import annotations

import base64
import traceback
from typing import Any
from urllib.parse import quote

import pytest

from ste_jax.config.schema import EndpointKnobs
from ste_jax.endpoints import openai
from ste_jax.endpoints.openai import OpenAIGenerator
from ste_jax.system.errors import RequestError, WorkError
from tests.endpoints.asking import HEAD, ask, by_row, message, sending
from tests.endpoints.endpoint import Answer, chat, serving

KEY = "sk-proj-Zq8/vX+2mN0pLrT7wYcD4eFgH"
ECHOES = {
    "plain": KEY,
    "url": quote(KEY, safe=""),
    "lower url": quote(KEY, safe="").lower(),
    "basic": base64.b64encode(f"user:{KEY}".encode()).decode(),
    "basic alone": base64.b64encode(f":{KEY}".encode()).decode(),
    "bearer64": base64.urlsafe_b64encode(KEY.encode()).decode(),
    "escaped": "".join(f"\\u{ord(letter):04x}" for letter in KEY),
    "part": KEY[:20] + "...",
    "hex": KEY.encode().hex(),
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "_FIRST_PAUSE", 0.001)


def leaks(text: str) -> bool:
    """Whether eight characters of the key in a row, in any of its forms, stand in a text."""
    data = KEY.encode()
    forms = [KEY, quote(KEY, safe=""), data.hex()]
    for before in range(3):
        forms.append(base64.b64encode(bytes(before) + data).decode().strip("=")[4:-2])
    long = [form for form in forms for form in (form, form.lower())]
    return any(
        form[at : at + 14] in each
        for each in (text, text.lower())
        for form in long
        for at in range(len(form) - 13)
    )


@pytest.mark.parametrize("form", ECHOES)
@pytest.mark.parametrize("way", ["error", "answer", "reason", "body", "location", "line", "chunk"])
def test_a_key_that_is_sent_back_goes_no_further(
    form: str, way: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    echo = ECHOES[form]
    raw = {
        "line": f"{echo}\r\n\r\n".encode(),
        "chunk": HEAD + f"Transfer-Encoding: chunked\r\n\r\n{echo}\r\nab".encode(),
    }
    answers: dict[str, Answer] = {
        "error": (400, {"error": {"message": f"{'x' * 290} wrong key {echo}"}}, {}),
        "answer": message(f"Your key is {echo}. [[A]]", reasoning=f"the key {echo}"),
        "reason": message("x", f"stopped {echo}"),
        "body": (200, f"<html>{echo}", {}),
        "location": (307, "", {"Location": f"http://elsewhere/?key={echo}"}),
    }
    told = ""
    if way in raw:
        pieces = lambda connection: connection.sendall(raw[way])  # noqa: E731
        with sending(pieces) as url, pytest.raises((WorkError, RequestError)) as failed:
            ask(url, "a", key_variable="A_KEY", retries=0)
        told = "".join(traceback.format_exception(failed.value))
    else:
        with serving(by_row({"a": answers[way]})) as endpoint:
            try:
                found = ask(endpoint.url, "a", "good", key_variable="A_KEY", concurrency=8)
            except RequestError as error:
                told = "".join(traceback.format_exception(error))
            else:
                told = repr(found["a"])
                hidden = way == "answer" and form == "escaped"  # it is no JSON there, but a text
                assert found["a"].error or hidden
        assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"
    out, err = capfd.readouterr()
    assert not leaks(told + out + err)


def test_a_key_is_not_carried_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    with serving(lambda *_: chat("stolen")) as other:
        away = {"Location": f"{other.url}/chat/completions"}
        refused = pytest.raises(RequestError, match="not as configured")
        with serving(lambda *_: (307, "", away)) as endpoint, refused:
            ask(endpoint.url, "a", key_variable="A_KEY")
    assert len(endpoint.asked) == 1 and other.asked == []


def test_a_word_that_is_no_secret_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "EMPTY")
    with serving(lambda *_: chat("The set is EMPTY.")) as endpoint:
        assert ask(endpoint.url, "a", key_variable="A_KEY")["a"].text == "The set is EMPTY."


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"url": "http://user:hunter2@host/v1"}, "holds a user or a password"),
        ({"url": "ftp://user:hunter2@host/v1"}, "holds a user or a password"),
        ({"url": "user:hunter2@host/v1"}, "holds a user or a password"),
        ({"url": "https://host/v1?key=hunter2"}, "nothing may stand behind"),
        ({"url": "https://host/v1#hunter2"}, "nothing may stand behind"),
        ({"url": "http://host:hunter2/v1"}, "must be http"),
        ({"url": "http://"}, "must be http"),
        ({"url": "http://host/v1/chat/completions"}, "is added to it"),
        ({"key_variable": "sk-hunter2"}, "never the key itself"),
        ({"timeout": float("nan")}, r"endpoints\.NAME\.timeout=nan is out of its range"),
        ({"timeout": float("inf")}, "timeout=inf is out of its range"),
        ({"deadline": 0.0}, "deadline=0.0 is out of its range"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"leave_out": ("messages",)}, "leave_out names 'messages'"),
    ],
)
def test_knobs_that_will_not_do_are_refused_and_not_repeated(
    knobs: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError, match=told) as refused:
        OpenAIGenerator(EndpointKnobs(**{"url": "http://host/v1", "model": "m", **knobs}))
    assert "hunter2" not in str(refused.value)
