"""How do many rows share one generator, while the code of a row reads from top to bottom?

A row's code is a Python generator, its conversation: it yields the requests it needs next and is
sent their completions, one list per request; what it returns is its result. `drive` runs many of
them over one stream, so that the model always has work, and knows nothing of what they ask."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Generator as Steps
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ste_jax.generation import Completion, Generator, Request

In = TypeVar("In")
Out = TypeVar("Out")
Conversation = Steps[Sequence[Request], list[list[Completion]], Out]


@dataclass
class _Open(Generic[In, Out]):
    row: In
    conversation: Conversation[Out]
    requests: Sequence[Request] = ()
    got: dict[str, list[Completion]] = field(default_factory=dict)
    tokens: int = 0
    """How many were drawn of the row so far."""

    def take(self, completion: Completion) -> None:
        self.got[completion.request_id].append(completion)
        self.tokens += completion.drawn_tokens

    def complete(self) -> bool:
        return all(len(self.got[each.id]) == len(each.samples) for each in self.requests)

    def completions(self) -> list[list[Completion]]:
        """The completions of each request, ordered by sample index."""
        return [sorted(self.got[each.id], key=lambda c: c.sample) for each in self.requests]


def drive(
    rows: Iterable[In],
    converse: Callable[[In], Conversation[Out]],
    generator: Generator,
) -> Iterator[tuple[In, Out]]:
    """Run `converse(row)` for every row; yield (row, result) as they finish, in no order.

    At most as many rows are open at once as the generator asks for (`in_flight`), so `rows` may be
    an endless stream. Ids are unique among the open requests; a row waits for all that it asked for
    before it asks again.
    """
    waiting = iter(rows)
    open_: dict[str, _Open[In, Out]] = {}
    finished: deque[tuple[In, Out]] = deque()
    running = 0

    def advance(entry: _Open[In, Out], sent: list[list[Completion]] | None) -> None:
        nonlocal running
        try:
            entry.requests = (
                next(entry.conversation) if sent is None else entry.conversation.send(sent)
            )
        except StopIteration as stop:
            finished.append((entry.row, stop.value))
            generator.usage.settled_tokens += entry.tokens
            running -= 1
            return
        entry.got = {request.id: [] for request in entry.requests}
        for request in entry.requests:
            if request.id in open_:
                raise AssertionError(f"request id {request.id} is open twice")
            open_[request.id] = entry
            generator.submit(request)

    def fill() -> None:
        nonlocal running
        while running < generator.in_flight:
            try:
                row = next(waiting)
            except StopIteration:
                return
            running += 1
            advance(_Open(row, converse(row)), None)

    fill()
    yield from _drained(finished)
    while open_:
        stuck = True
        for completion in generator.completions():
            stuck = False
            entry = open_[completion.request_id]
            entry.take(completion)
            if entry.complete():
                for request in entry.requests:
                    del open_[request.id]
                advance(entry, entry.completions())
                fill()
            yield from _drained(finished)
        if stuck:
            raise AssertionError(f"the generator left {len(open_)} requests unanswered")


def _drained(finished: deque[Any]) -> Iterator[Any]:
    while finished:
        yield finished.popleft()
