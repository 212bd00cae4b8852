"""How does this project's own engine answer a stage's requests?

Messages become tokens here, once per prompt, and the engine does the rest. What begins the
assistant's turn stands after the chat template: `continue_ids` as they are, then `continue_text`. A
forced start without `continue_ids` is encoded together with the template's end, where that leaves
the template's own tokens as they are (it does in all templates whose assistant header ends in a
control token or a line break); else, and after `continue_ids`, it is encoded alone.
"""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from jax.sharding import Mesh

from ste_jax.config.schema import DecodingKnobs
from ste_jax.decoding.engine import Engine
from ste_jax.decoding.rows import Prompt, TextDecoder
from ste_jax.decoding.shapes import DoesNotFit, TooLong
from ste_jax.generation import (
    Completion,
    Message,
    Request,
    Score,
    ScoreRequest,
    Usage,
)
from ste_jax.models.decoder import Decoder
from ste_jax.prompts.thoughts import closing_of, holds_mark, left_open
from ste_jax.system import hashing, preemption
from ste_jax.system.errors import SteError
from ste_jax.tokenization.assistant_turn import forced_ids
from ste_jax.tokenization.control_tokens import Piece

KNOWN_TOKENS = 1 << 20
"""How many tokens of prompts are remembered: enough for far more prompts than are open at once."""


class ChatTokenizer(TextDecoder, Protocol):
    """What the generator needs of a tokenizer."""

    def prompt_ids(
        self,
        messages: Sequence[Message],
        continue_text: str = "",
        arguments: Mapping[str, Any] = ...,
    ) -> list[int]:
        """The tokens of a chat up to where the assistant speaks, and of the text it begins with."""

    @property
    def thinks(self) -> bool:
        """Whether the chat template holds a mark of thoughts at all."""

    def opened_thoughts(
        self, messages: Sequence[Message], arguments: Mapping[str, Any] = ...
    ) -> str:
        """The mark of thoughts that the chat template leaves open, or nothing."""

    def encode_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """The tokens of a text that follows others, given in pieces: text or control tokens."""

    @property
    def control_tokens(self) -> Collection[str]:
        """The texts of the control tokens."""

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """The tokens of plain text, never a control token; `continues`: it follows other tokens."""


class LocalGenerator:
    """A `ste_jax.generation.Generator`: runs `model` on this host's first device or on `mesh`."""

    can_score = True

    def __init__(
        self,
        model: Decoder,
        tokenizer: ChatTokenizer,
        knobs: DecodingKnobs,
        mesh: Mesh | None = None,
    ) -> None:
        self._engine = Engine(model, tokenizer, knobs, mesh)
        self._tokenizer = tokenizer
        self._known: OrderedDict[bytes, tuple[array[int], str]] = OrderedDict()
        self._known_tokens = 0
        self._in_flight = 4 * max(knobs.groups, knobs.singles)

    @property
    def in_flight(self) -> int:
        """How many rows a stage keeps open at once, so that a free slot always finds work."""
        return self._in_flight

    @property
    def usage(self) -> Usage:
        """What has been done so far."""
        return self._engine.usage

    def submit(self, request: Request) -> None:
        """Queues samples; returns at once.

        An end-of-turn token at the end of `continue_ids` is left out: it ended a turn that goes on.
        """
        continued = list(request.continue_ids)
        if continued and continued[-1] in self._tokenizer.eos_ids:
            continued.pop()
        try:
            prompt = self._prompt(request, continued)
        except SteError as error:  # this chat cannot be asked; the others can
            self._engine.refuse(request, str(error))
            return
        self._engine.submit(request, prompt)

    def completions(self) -> Iterator[Completion]:
        """Yields samples as they end, in no order, until nothing is outstanding."""
        return self._engine.completions()

    def release(self, id: str) -> None:
        """Forgets the prompt of this request: no more of its samples will be asked for."""
        self._engine.release(id)

    def prefix(self, completion: Completion, chars: int) -> tuple[tuple[int, ...], str]:
        """The longest beginning of a completion's tokens whose text has at most `chars` characters,
        and that text.

        The end-of-turn token is not part of it. A beginning's text only grows, so this bisects.
        """
        ids = completion.token_ids
        if ids and ids[-1] in self._tokenizer.eos_ids:
            ids = ids[:-1]
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._tokenizer.decode(ids[:middle])) <= chars:
                low = middle
            else:
                high = middle - 1
        return ids[:low], self._tokenizer.decode(ids[:low])

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """One `Score` per request, in order.

        A completion's tokens are those of its text encoded alone, whatever stands before it, and no
        end-of-turn token is added; an empty one has no log-probabilities. Thoughts that the chat
        template opens are closed first: labels are said, not thought. Raises `Preempted` between
        two requests when the process was asked to stop.
        """
        for request in requests:
            preemption.poll()
            encode = self._tokenizer.encode
            try:
                prompt = self._prompt(request, [])
                tokens = [encode(text, continues=True) for text in request.completions]
            except SteError as error:  # this chat cannot be asked; the others can
                yield Score(request_id=request.id, logprobs=(), error=str(error))
                continue
            try:
                logprobs = tuple(self._engine.score(request.id, prompt, tokens))
            except DoesNotFit as error:
                long = isinstance(error, TooLong)
                yield Score(request_id=request.id, logprobs=(), error=str(error), too_long=long)
                continue
            yield Score(request_id=request.id, logprobs=logprobs)

    def _prompt(self, request: Request | ScoreRequest, continued: list[int]) -> Prompt:
        text = request.continue_text
        template, opened = self._template_ids(request)
        if opened and isinstance(request, ScoreRequest):
            text = f"{closing_of(opened)}{text}"
        if not continued and text and not holds_mark(text):
            joined, _ = self._template_ids(request, text)
            if joined[: len(template)] == template:
                return Prompt(
                    tuple(joined),
                    tuple(joined[len(template) :]),
                    thinking=bool(opened),
                    thinks=self._tokenizer.thinks,
                )
        if text:
            continued = continued + self._encode_on(text)
        thinking = bool(opened and left_open(opened + self._tokenizer.decode(continued)))
        return Prompt(
            (*template, *continued),
            tuple(continued),
            thinking=thinking,
            thinks=self._tokenizer.thinks,
        )

    def _encode_on(self, text: str) -> list[int]:
        if holds_mark(text):
            return forced_ids(self._tokenizer, text)
        return self._tokenizer.encode(text, continues=True)

    def _template_ids(
        self, request: Request | ScoreRequest, continue_text: str = ""
    ) -> tuple[list[int], str]:
        """The prompt's tokens, and the mark of thoughts that is left open in it."""
        messages, arguments = request.messages, dict(request.template_arguments)
        turns = [[message["role"], message["content"]] for message in messages]
        text = json.dumps([continue_text, turns, arguments], sort_keys=True)
        key = hashing.digest(text)
        if key not in self._known:
            more: dict[str, Any] = {"continue_text": continue_text} if continue_text else {}
            more |= {"arguments": arguments} if arguments else {}
            ids = array("i", self._tokenizer.prompt_ids(messages, **more))
            self._known[key] = ids, self._tokenizer.opened_thoughts(messages, arguments)
            self._known_tokens += len(ids)
            while self._known_tokens > KNOWN_TOKENS and len(self._known) > 1:
                _, (gone, _) = self._known.popitem(last=False)
                self._known_tokens -= len(gone)
        self._known.move_to_end(key)
        ids, opened = self._known[key]
        return ids.tolist(), opened
