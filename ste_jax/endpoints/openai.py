"""How does a model behind an endpoint answer a stage?

The endpoint must speak OpenAI's chat completions, as vLLM, SGLang, llama.cpp and hosted models do.
Every sample is a request of its own, and several are sent at a time; a request that fails for a
moment is tried again with growing pauses. A row that the endpoint refuses or answers oddly fails
alone. An endpoint that refuses the key or the model, or does not answer, ends the work, which goes
on from there when it is run again.
"""

from __future__ import annotations

import dataclasses
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ste_jax.config.schema import LEAVABLE, EndpointKnobs
from ste_jax.endpoints.answers import UnreadableAnswer, read_answer, read_body, status_of
from ste_jax.endpoints.wire import Misconfigured, NoAnswer, Reply, UnusableAnswer, Wire
from ste_jax.generation import (
    Completion,
    Message,
    Request,
    Score,
    ScoreRequest,
    Usage,
)
from ste_jax.system import hashing
from ste_jax.system.errors import RequestError, SteError, WorkError

_OF_THE_MOMENT = (408, 409, 425, 429, 502, 503, 504, 529)
"""Status codes that say nothing about the request; other codes from 500 on may be due to it."""
_OF_THE_REQUEST = (400, 413, 422)
"""Status codes that concern this request alone; all others below 500 concern every request."""
_WHY = {
    401: "the key is refused",
    402: "no credit is left; add some",
    403: "it is refused",
    404: "there is no such address or model",
}
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds."""
_PROBE = "\0probe"
"""The id of a request that any model would answer. It shows whether only the rows are at fault."""
_UNKNOWN = re.compile(
    r"un(known|supported|recogni[sz]ed|expected)|not (supported|permitted|allowed)|extra|invalid",
    re.IGNORECASE,
)


class OpenAIGenerator:
    """A `Generator` over an OpenAI-compatible endpoint. See `EndpointKnobs`.

    It has no token ids and no log-probabilities. Each sample is sent with a seed that derives from
    the row's identity; whether the same request gives the same answer again depends on the
    endpoint.
    """

    can_score = False

    def __init__(self, knobs: EndpointKnobs, poll: Callable[[], None] = lambda: None) -> None:
        """`poll` is called while an answer is awaited and may raise to stop. Raises `RequestError`
        for knobs that cannot be used, or where the variable of the key holds no key."""
        self._knobs, self._poll = knobs, poll
        self._wire = Wire(knobs)
        self._last: Request | None = None
        self._probed = 0
        self._answered = False
        self._refused: list[Completion] = []
        self._waiting: queue.SimpleQueue[tuple[Request, int] | None] = queue.SimpleQueue()
        self._workers = 0
        self._done: queue.SimpleQueue[Completion | SteError] = queue.SimpleQueue()
        self._outstanding = 0
        self._stop = threading.Event()
        self._began: float | None = None
        self.usage = Usage()

    @property
    def in_flight(self) -> int:
        """How many rows a stage keeps open at once, so that a free place always finds work."""
        return 2 * self._knobs.concurrency

    def submit(self, request: Request) -> None:
        """Queue samples; returns at once."""
        if not self._outstanding:
            self._began = time.perf_counter()
        self.usage.requests += 1
        self._last = request
        self._outstanding += len(request.samples)
        for sample in request.samples:
            self._waiting.put((request, sample))
            if self._workers < self._knobs.concurrency:
                self._workers += 1
                # Daemons: an answer that takes minutes must not keep the process from ending.
                threading.Thread(target=self._work, name="endpoint", daemon=True).start()

    def completions(self) -> Iterator[Completion]:
        """Yields samples as they come, in no order, until nothing is outstanding.

        Raises:
          WorkError: the endpoint did not answer.
          RequestError: the endpoint refuses the key or the model.
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
            probe = found.request_id == _PROBE
            self.usage.samples += not probe
            if not self._outstanding and self._began is not None:
                self.usage.seconds += time.perf_counter() - self._began
            # An endpoint may refuse every request, which is no row's fault: no refusal is passed on
            # until one row is answered, or at least a request that any model would answer.
            if found.finish_reason == "error" and not self._answered:
                if probe:
                    self.close()
                    raise RequestError(
                        f"endpoint {self._knobs.url}, model {self._knobs.model}: not one of the "
                        f"first {self._probed} requests was answered; the last: "
                        f"{self._refused[-1].error}"
                    )
                self._refused.append(found)
                if len(self._refused) >= self._knobs.concurrency or not self._outstanding:
                    self._probe()
                continue
            self._answered = True
            yield from self._refused
            self._refused = []
            if not probe:
                yield found

    def _probe(self) -> None:
        """Send, once, a request that any model would answer."""
        if self._probed or self._last is None:
            return
        self._probed = len(self._refused)
        self._outstanding += 1
        asked = _harmless(self._last)
        threading.Thread(target=self._answer, args=(asked, 0), name="endpoint", daemon=True).start()

    def release(self, id: str) -> None:
        """Does nothing: no prompts are kept here."""

    def prefix(self, completion: Completion, chars: int) -> tuple[tuple[int, ...], str]:
        """Gives no tokens and an empty text, since there are no token ids."""
        return (), ""

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Raises `RequestError`: chat completions give no log-probabilities of a given text."""
        raise RequestError(f"endpoint {self._knobs.url} cannot score a given text")

    def close(self) -> None:
        """Gives up all requests that are outstanding."""
        self._stop.set()
        for _ in range(self._workers):
            self._waiting.put(None)
        self._wire.close()

    # -----------------------------------------------------------------------------------------
    # In the workers' threads

    def _work(self) -> None:
        while (given := self._waiting.get()) and not self._stop.is_set():
            self._answer(*given)

    def _answer(self, request: Request, sample: int) -> None:
        try:
            values, body = self._post(request, sample)
            self._done.put(self._completion(request, sample, values, body))
        except (UnreadableAnswer, UnusableAnswer) as error:
            self._done.put(_failed(request, sample, self._wire.clean(str(error))))
        except SteError as error:
            self._done.put(error)
        except Exception as error:  # a thread's exception would be lost, and the work would hang
            if not self._stop.is_set():
                reason = f"the answer cannot be read ({type(error).__name__})"
                self._done.put(_failed(request, sample, reason))

    def _payload(self, request: Request, sample: int) -> dict[str, Any]:
        sampling = request.sampling
        messages: list[Message] = list(request.messages)
        payload: dict[str, Any] = {
            "model": self._knobs.model,
            "messages": messages,
            self._knobs.length_field: sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": _seed(request, sample),
        }
        if request.continue_text:
            messages.append({"role": "assistant", "content": request.continue_text})
            # A field of vLLM and SGLang; servers that always do so ignore it.
            payload |= {"add_generation_prompt": False, "continue_final_message": True}
        if sampling.stop:
            payload["stop"] = list(sampling.stop)
        # These are not part of OpenAI's protocol, so they are sent only where they are set.
        optional = {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "ignore_eos": sampling.ignore_eos,
        }
        payload |= {key: value for key, value in optional.items() if value}
        if request.template_arguments:
            payload["chat_template_kwargs"] = dict(request.template_arguments)
        for name in self._knobs.leave_out:
            payload.pop(name, None)
        return payload

    def _post(self, request: Request, sample: int) -> tuple[dict[str, Any], bytes]:
        """The answer to a request, as JSON and as bytes.

        Raises:
          UnreadableAnswer, UnusableAnswer: this request gets no answer.
          SteError: no request gets an answer.
        """
        payload, reason, own = self._payload(request, sample), "", False
        for attempt in range(self._knobs.retries + 1):
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                reply = self._wire.post(payload)
            except Misconfigured as error:
                raise RequestError(f"endpoint {self._knobs.url}: {error}") from None
            except NoAnswer as error:
                reason, own = str(error), error.reached
            else:
                fine = 200 <= reply.status < 300
                values = read_body(reply.body) if fine else {}
                status = status_of(values, reply.status)
                if 200 <= status < 300:
                    return values, reply.body
                reason = self._refusal(status, reply, payload)
                own = status not in _OF_THE_MOMENT
                pause = max(pause, _asked_to_wait(reply))
            if attempt < self._knobs.retries and self._stop.wait(pause):
                break
        if own and self._answers_another(request):
            raise UnusableAnswer(f"the endpoint fails at this request each time ({reason})")
        raise WorkError(
            f"endpoint {self._knobs.url} did not answer in {self._knobs.retries + 1} tries; the "
            f"last: {reason}; run again when it does"
        )

    def _answers_another(self, request: Request) -> bool:
        """Whether the endpoint, which fails at this request, answers another one."""
        try:
            reply = self._wire.post(self._payload(_harmless(request), 0))
            read_answer(read_body(reply.body), reply.body)
        except (NoAnswer, Misconfigured, UnreadableAnswer, UnusableAnswer):
            return False
        return 200 <= reply.status < 300

    def _refusal(self, status: int, reply: Reply, payload: dict[str, Any]) -> str:
        """The reason why an endpoint refused a request, if it may accept it soon.

        Raises:
          UnusableAnswer: it refuses this request for good. RequestError: it refuses all requests.
        """
        elsewhere = reply.headers.get("Location", "")
        said = self._wire.quoted(elsewhere or reply.body[:20_000].decode("utf-8", "replace"))
        reason = f"status {status}: {said}"
        if status in _OF_THE_REQUEST:
            raise UnusableAnswer(
                f"the endpoint refuses the request ({reason}){_remedy(said, payload)}"
            )
        if status < 500 and status not in _OF_THE_MOMENT:
            why = _WHY.get(status, "it is not as configured")
            raise RequestError(
                f"endpoint {self._knobs.url}, model {self._knobs.model}: {why} ({reason})"
            )
        return reason

    def _completion(
        self, request: Request, sample: int, values: dict[str, Any], body: bytes
    ) -> Completion:
        answer = read_answer(values, body, request.sampling.max_new_tokens)
        if self._wire.secret.is_in(answer.text):
            raise UnreadableAnswer("the answer holds the endpoint's key, or a part of it")
        text, thoughts = answer.text, self._wire.secret.hide(answer.thoughts)
        # Endpoints leave out the stop string that ended the text; some say which it was.
        if answer.stopped in request.sampling.stop and not text.endswith(answer.stopped):
            text += answer.stopped
        with _COUNTING:
            self.usage.prompt_tokens += answer.prompt_tokens
            self.usage.cached_prompt_tokens += answer.cached_tokens
            self.usage.new_tokens += answer.new_tokens
        return Completion(
            request_id=request.id,
            sample=sample,
            text=text,
            token_ids=(),
            drawn_tokens=answer.new_tokens,
            finish_reason=answer.reason,
            prompt_tokens=answer.prompt_tokens,
            thoughts=thoughts,
        )


_COUNTING = threading.Lock()


def _harmless(request: Request) -> Request:
    """A request that any model would answer, with the settings of `request`."""
    messages = [Message(role="user", content="Which letter comes first, A or B?")]
    return dataclasses.replace(request, id=_PROBE, messages=messages, continue_text="")


_TOO_LONG = re.compile(
    r"^the endpoint refuses.*(context[ _-]?(length|window|size)|too many (input )?tokens|"
    r"(prompt|input|request) is too long)",
    re.IGNORECASE | re.DOTALL,
)
"""Matches how vLLM, SGLang, llama.cpp, OpenAI and others say that a prompt is too long."""


def _failed(request: Request, sample: int, why: str) -> Completion:
    return Completion(
        request_id=request.id,
        sample=sample,
        text="",
        token_ids=(),
        finish_reason="error",
        error=why,
        too_long=_TOO_LONG.search(why) is not None,
    )


def _seed(request: Request, sample: int) -> int:
    """31 bits of the sample's identity."""
    return hashing.number31(f"{request.key}/{request.id}/{sample}")


def _remedy(said: str, payload: dict[str, Any]) -> str:
    """What the user can do where an endpoint refuses a field that not all servers know."""
    if "max_tokens" in payload and "max_completion_tokens" in said:
        return "; set this endpoint's length_field to max_completion_tokens"
    named = [name for name in LEAVABLE if name in payload and re.search(rf"\b{name}\b", said)]
    if not named or not _UNKNOWN.search(said):
        return ""
    return f"; name it in this endpoint's leave_out, as leave_out: [{', '.join(named)}]"


def _asked_to_wait(reply: Reply) -> float:
    """The seconds that the endpoint asks for, within reason."""
    try:
        return min(_LONGEST_PAUSE, float(reply.headers.get("Retry-After", 0)))
    except ValueError:  # a date: our own pause is used
        return 0.0
