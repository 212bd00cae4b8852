"""How does a model behind somebody's endpoint answer a stage?

Any endpoint that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, a hosted model. Every
sample is a request of its own, a number of them at a time; what fails for a moment is tried again
with growing pauses. A row that the endpoint refuses fails alone; an endpoint that refuses the key
or the model, or stays away, ends the work, which goes on from there when it is run again.
"""

from __future__ import annotations

import hashlib
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import requests

from ste_jax.config import EndpointKnobs
from ste_jax.errors import RequestError, SteError, WorkError
from ste_jax.generators.protocol import (
    Capabilities,
    Completion,
    Message,
    Request,
    Score,
    ScoreRequest,
    Usage,
)

_AGAIN = (408, 409, 425, 429)
"""Status codes that say nothing about the request, as those from 500 on."""
_OWN = (400, 413, 422)
"""Those that say something of this request alone; all others hold for every one."""
_WHY = {
    401: "the key is refused",
    402: "no credit is left; add some",
    403: "it is refused",
    404: "there is no such address or model",
}
_NO_ANSWER = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds."""


class OpenAIGenerator:
    """A `Generator` over an OpenAI-compatible endpoint. See `EndpointKnobs`.

    It has no token ids and no log-probabilities, and whether the same request gives the same answer
    again is the endpoint's affair: each sample is sent with a seed that derives from the row's
    identity.
    """

    capabilities = Capabilities()

    def __init__(self, knobs: EndpointKnobs, poll: Callable[[], None] = lambda: None) -> None:
        """`poll` is called while an answer is awaited and may raise to stop. Raises `RequestError`
        where the key's variable is named and holds none."""
        self._knobs, self._poll = knobs, poll
        self._session = requests.Session()
        pool = requests.adapters.HTTPAdapter(pool_maxsize=knobs.concurrency)
        self._session.mount(knobs.url, pool)
        if knobs.key_variable:
            key = os.environ.get(knobs.key_variable, "").strip()
            if not key or not key.isascii() or not key.isprintable():
                raise RequestError(
                    f"endpoint {knobs.url}: the environment variable {knobs.key_variable} is to "
                    "hold its key, and is not set or holds something else; set it, or name none "
                    "(key_variable: '')"
                )
            self._session.auth = _Bearer(key)
        else:
            self._session.auth = _Bearer("")
        self._answered = False
        self._refused: list[Completion] = []
        self._waiting: queue.SimpleQueue[tuple[Request, int] | None] = queue.SimpleQueue()
        self._workers = 0
        self._done: queue.SimpleQueue[Completion | SteError] = queue.SimpleQueue()
        self._outstanding = 0
        self._stop = threading.Event()
        self._began: float | None = None
        self.usage = Usage()

    def submit(self, request: Request) -> None:
        """Queue samples; returns at once."""
        if not self._outstanding:
            self._began = time.perf_counter()
        self.usage.requests += 1
        self._outstanding += len(request.samples)
        for sample in request.samples:
            self._waiting.put((request, sample))
            if self._workers < self._knobs.concurrency:
                self._workers += 1
                # Daemons: an answer that takes minutes must not keep a process from its end.
                threading.Thread(target=self._work, name="endpoint", daemon=True).start()

    def completions(self) -> Iterator[Completion]:
        """Yields samples as they come, in no order, until nothing is outstanding.

        Raises:
          WorkError: the endpoint stayed away.
          RequestError: it refuses the key or the model.
        """
        while self._outstanding:
            try:
                found = self._done.get(timeout=1.0)
            except queue.Empty:
                self._poll()
                continue
            if isinstance(found, SteError):
                self.close()
                raise found
            self._outstanding -= 1
            self.usage.samples += 1
            if not self._outstanding and self._began is not None:
                self.usage.seconds += time.perf_counter() - self._began
            # What refuses every request is no fault of a row: nothing is told of the rows until
            # one is answered.
            if found.finish_reason == "error" and not self._answered:
                self._refused.append(found)
                if len(self._refused) < self._knobs.concurrency and self._outstanding:
                    continue
                self.close()
                raise RequestError(
                    f"endpoint {self._knobs.url}, model {self._knobs.model}: not one of the first "
                    f"{len(self._refused)} requests was answered; the last: {found.error}"
                )
            self._answered = True
            yield from self._refused
            self._refused = []
            yield found

    def release(self, id: str) -> None:
        """Nothing is kept here."""

    def prefix(self, completion: Completion, chars: int) -> tuple[tuple[int, ...], str]:
        """Both empty: there are no token ids."""
        return (), ""

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Raises `RequestError`: chat completions tell nothing of a text that is given."""
        raise RequestError(f"endpoint {self._knobs.url} cannot score a given text")

    def close(self) -> None:
        """Gives up what is outstanding."""
        self._stop.set()
        for _ in range(self._workers):
            self._waiting.put(None)
        self._session.close()

    # -----------------------------------------------------------------------------------------
    # In the workers' threads

    def _work(self) -> None:
        while (given := self._waiting.get()) and not self._stop.is_set():
            self._answer(*given)

    def _answer(self, request: Request, sample: int) -> None:
        try:
            answer = self._post(self._payload(request, sample))
            self._done.put(self._completion(request, sample, answer))
        except _Refused as error:
            self._done.put(_failed(request, sample, str(error)))
        except SteError as error:
            self._done.put(error)
        except Exception as error:  # a thread's exception would be lost, and the work would hang
            if not self._stop.is_set():
                self._done.put(WorkError(f"endpoint {self._knobs.url}: {type(error).__name__}"))

    def _payload(self, request: Request, sample: int) -> dict[str, Any]:
        sampling = request.sampling
        messages: list[Message] = list(request.messages)
        payload: dict[str, Any] = {
            "model": self._knobs.model,
            "messages": messages,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": _seed(request, sample),
        }
        if request.continue_text:
            messages.append({"role": "assistant", "content": request.continue_text})
            # As vLLM and SGLang have it; those that do so anyhow pass it over.
            payload |= {"add_generation_prompt": False, "continue_final_message": True}
        if sampling.stop:
            payload["stop"] = list(sampling.stop)
        # No part of OpenAI's own, so sent only where they say something.
        optional = {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "ignore_eos": sampling.ignore_eos,
        }
        return payload | {key: value for key, value in optional.items() if value}

    def _post(self, payload: dict[str, Any]) -> dict[str, Any]:
        told = ""
        for attempt in range(self._knobs.retries + 1):
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                response = self._session.post(
                    self._knobs.url.rstrip("/") + "/chat/completions",
                    json=payload,
                    timeout=(min(30.0, self._knobs.timeout), self._knobs.timeout),
                    allow_redirects=False,
                )
            except requests.exceptions.SSLError as error:
                raise RequestError(f"endpoint {self._knobs.url}: {error}") from error
            except _NO_ANSWER as error:
                told = f"{type(error).__name__}: {error}"
            except requests.RequestException as error:
                raise RequestError(f"endpoint {self._knobs.url}: {error}") from error
            else:
                status, answer = _status(response)
                if status == requests.codes.ok:
                    return answer
                elsewhere = response.headers.get("Location", "")
                told = f"status {status}: {elsewhere or response.text[:500]}"
                if status in _OWN:
                    raise _Refused(f"the endpoint refuses the request ({told})")
                if status < 500 and status not in _AGAIN:
                    why = _WHY.get(status, "it is not as configured")
                    raise RequestError(
                        f"endpoint {self._knobs.url}, model {self._knobs.model}: {why} ({told})"
                    )
                pause = max(pause, _asked_to_wait(response))
            if attempt < self._knobs.retries and self._stop.wait(pause):
                break
        raise WorkError(
            f"endpoint {self._knobs.url} did not answer in {self._knobs.retries + 1} tries; the "
            f"last: {told}; run again when it does"
        )

    def _completion(self, request: Request, sample: int, answer: dict[str, Any]) -> Completion:
        try:
            (choice,) = answer["choices"]
            text = choice["message"].get("content") or ""
            reason = choice["finish_reason"]
        except (KeyError, TypeError, ValueError, AttributeError):
            return _failed(request, sample, f"the answer is no chat completion: {answer!r:.300}")
        if reason not in ("stop", "length"):
            return _failed(request, sample, f"the endpoint ended the answer by {reason!r}")
        # Endpoints leave out the stop string that ended the text; some say which it was.
        stopped = choice.get("stop_reason") or choice.get("matched_stop")
        if stopped in request.sampling.stop and not text.endswith(stopped):
            text += stopped
        counts = answer.get("usage") or {}
        prompt_tokens = int(counts.get("prompt_tokens") or 0)
        cached = (counts.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        with _COUNTING:
            self.usage.prompt_tokens += prompt_tokens
            self.usage.cached_prompt_tokens += int(cached)
            self.usage.new_tokens += int(counts.get("completion_tokens") or 0)
        return Completion(
            request_id=request.id,
            sample=sample,
            text=text,
            token_ids=(),
            finish_reason=reason,
            prompt_tokens=prompt_tokens,
        )


_COUNTING = threading.Lock()


class _Bearer(requests.auth.AuthBase):
    """A key in the header, or none, which no `.netrc` replaces."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class _Refused(Exception):
    """The endpoint will not have this request, whatever others it takes."""


def _failed(request: Request, sample: int, why: str) -> Completion:
    return Completion(
        request_id=request.id,
        sample=sample,
        text="",
        token_ids=(),
        finish_reason="error",
        error=why,
    )


def _seed(request: Request, sample: int) -> int:
    """31 bits of the sample's identity."""
    text = f"{request.key}/{request.id}/{sample}"
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def _status(response: requests.Response) -> tuple[int, dict[str, Any]]:
    """The status and the answer; some endpoints tell of an error under the status 200."""
    if response.status_code != requests.codes.ok:
        return response.status_code, {}
    try:
        values = response.json()
    except ValueError as error:
        raise _Refused(f"the answer is not JSON: {response.text[:300]!r}") from error
    if not isinstance(values, dict):
        raise _Refused(f"the answer is no chat completion: {values!r:.300}")
    fault = values.get("error")
    code = fault.get("code") if isinstance(fault, dict) else None
    return (code if isinstance(code, int) else response.status_code), values


def _asked_to_wait(response: requests.Response) -> float:
    """The seconds that the endpoint asks for, within reason."""
    try:
        return min(_LONGEST_PAUSE, float(response.headers.get("Retry-After", 0)))
    except ValueError:  # a date: our own pause will do
        return 0.0
