"""When has a sample ended, and what is it then?

A row is one sample while it is drawn: the host's side of it. The device ends a row at an
end-of-turn token and at its last allowed token; stop strings are looked for here, between two
rounds, in the text of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ste_jax.decoding.text_stream import TextStream
from ste_jax.generation import Completion, FinishReason, Request
from ste_jax.system import hashing


class TextDecoder(Protocol):
    """What decoding needs of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a turn."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""


@dataclass(frozen=True)
class Prompt:
    """A request's prompt as tokens."""

    tokens: tuple[int, ...]
    continued: tuple[int, ...] = ()
    """Those at its end that stand after the chat template: what the assistant's turn begins
    with.
    """
    thinking: bool = False
    """Whether the chat template opened thoughts that are still open at its end."""
    thinks: bool = True
    """Whether the chat template holds a mark of thoughts, as far as is known."""

    @property
    def name(self) -> bytes:
        """The same for prompts of the same tokens."""
        text = ",".join(map(str, self.tokens))
        return hashing.digest(text)


@dataclass
class Row:
    """One sample that waits or runs."""

    request: Request
    sample: int
    prompt: Prompt
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    _stream: TextStream | None = None

    def take(
        self, tokens: Sequence[int], logprobs: Sequence[float], tokenizer: TextDecoder
    ) -> Completion | None:
        """Adds the tokens of a round; returns the completion if one of them ends the row.

        Tokens after the end must not be among them, but for those after a stop string.
        """
        known = len(self.tokens)
        self.tokens.extend(tokens)
        self.logprobs.extend(logprobs)
        sampling = self.request.sampling
        if sampling.stop:
            if self._stream is None:
                self._stream = TextStream(tokenizer.decode)
            if _may_stop(self._stream, tokens, sampling.stop):
                cut = find_stop(self.tokens, known, sampling.stop, tokenizer)
                if cut is not None:
                    length, text = cut
                    return self._completion("stop", text, length)
        if self.tokens and self.tokens[-1] in tokenizer.eos_ids and not sampling.ignore_eos:
            return self._completion("stop", tokenizer.decode(self.tokens), len(self.tokens))
        if len(self.tokens) >= sampling.max_new_tokens:
            return self._completion("length", tokenizer.decode(self.tokens), len(self.tokens))
        return None

    def failed(self, why: str, *, too_long: bool = False) -> Completion:
        """The completion of a row that could not be drawn."""
        return self._completion("error", "", 0, why, too_long)

    def _completion(
        self,
        reason: FinishReason,
        text: str,
        length: int,
        error: str = "",
        too_long: bool = False,
    ) -> Completion:
        return Completion(
            request_id=self.request.id,
            sample=self.sample,
            text=text,
            token_ids=tuple(self.tokens[:length]),
            logprobs=tuple(self.logprobs[:length]),
            finish_reason=reason,
            prompt_tokens=len(self.prompt.tokens),
            drawn_tokens=len(self.tokens),
            continued_ids=self.prompt.continued,
            thinking=self.prompt.thinking,
            thinks=self.prompt.thinks,
            error=error,
            too_long=too_long,
        )


def _may_stop(stream: TextStream, tokens: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether a stop string ends in what `tokens` add to the text."""
    stayed = stream.add(tokens)
    added = stream.text[max(0, stayed + 1 - max(map(len, stop))) :]
    return _end_of_stop(added, stop) is not None


def find_stop(
    tokens: Sequence[int], known: int, stop: Sequence[str], tokenizer: TextDecoder
) -> tuple[int, str] | None:
    """Where the first stop string ends, or None if `tokens` hold none.

    The first `known` tokens are known to hold none. Returns how many tokens it takes to complete
    the stop string, and the text up to its end.
    """
    for length in range(known + 1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:length])
        end = _end_of_stop(text, stop)
        if end is not None:
            return length, text[:end]
    return None


def _end_of_stop(text: str, stop: Sequence[str]) -> int | None:
    ends = [text.find(one) + len(one) for one in stop if one and one in text]
    return min(ends, default=None)


def split64(number: int) -> tuple[int, int]:
    """The halves (high, low) of a number modulo 2^64."""
    number %= 1 << 64
    return number >> 32, number & 0xFFFFFFFF


def hash_id(id: str) -> tuple[int, int]:
    """A request's id as a 64-bit number, the same on every machine: its halves (high, low)."""
    return split64(hashing.number(id))
