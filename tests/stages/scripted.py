"""A generator that says what a test wants: a stand-in for a model, for tests of the stages
alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ste_jax.generation import (
    Completion,
    Request,
    Score,
    ScoreRequest,
    Usage,
)

Reply = str | tuple[str, str]


@dataclass
class Scripted:
    """`reply(request, sample)` is a text, or (text, finish reason), of which "too_long" is an error
    of its own. Token ids are code points."""

    reply: Callable[[Request, int], Reply]
    logprobs: Callable[[ScoreRequest, str], float] = lambda request, completion: 0.0
    last_first: bool = False
    in_flight: int = 4
    can_score: bool = True
    usage: Usage = field(default_factory=Usage)
    asked: list[Request] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    most_open: int = 0
    _queue: deque[tuple[Request, int]] = field(default_factory=deque)

    def submit(self, request: Request) -> None:
        self.asked.append(request)
        self._queue.extend((request, sample) for sample in request.samples)
        self.most_open = max(self.most_open, len({each.id for each, _ in self._queue}))

    def completions(self) -> Iterator[Completion]:
        while self._queue:
            request, sample = self._queue.pop() if self.last_first else self._queue.popleft()
            said = self.reply(request, sample)
            text, told = said if isinstance(said, tuple) else (said, "stop")
            reason = "error" if told == "too_long" else told
            yield Completion(
                request_id=request.id,
                sample=sample,
                text=text,
                token_ids=tuple(map(ord, text)),
                finish_reason=reason,  # type: ignore[arg-type]
                continued_ids=request.continue_ids + tuple(map(ord, request.continue_text)),
                error=text if reason == "error" else "",
                too_long=told == "too_long",
            )

    def release(self, id: str) -> None:
        self.released.append(id)

    def prefix(self, completion: Completion, chars: int) -> tuple[tuple[int, ...], str]:
        return completion.token_ids[:chars], completion.text[:chars]

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        for request in requests:
            yield Score(
                request_id=request.id,
                logprobs=tuple((self.logprobs(request, each),) for each in request.completions),
            )
