"""What does a stage ask of a language model?

It goes through one small protocol, so that a stage does not know whether its model runs on this
host, over a pod, or behind an endpoint. A stage submits requests at any time and takes completions
as they come; a prompt that needs no more samples is released.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict

from ste_jax.system.progress_lines import Figure
from ste_jax.system.ranges import OrNone, Probability, Share, Temperature, check_fields


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; the filters then mean nothing.

    `top_k` 0, `top_p` 1 and `min_p` 0 switch the filters off. `stop` holds texts that end a
    completion; the text itself is kept (a verdict mark may be one). `max_new_tokens` 0 says that
    the number is still to be fitted to a model: nothing can be drawn so. Raises `RequestError` for
    a number out of its range.
    """

    max_new_tokens: OrNone
    temperature: Temperature = 0.0
    top_p: Probability = 1.0
    top_k: OrNone = 0
    min_p: Share = 0.0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Asks for samples of one prompt.

    `id` names the row: random keys derive from (`key`, `id`, sample index, token position) and from
    nothing else, so a sample is the same whatever it was batched with. Samples of one `id` may be
    asked for in several requests (waves), each sample index once.

    `continue_ids`, then `continue_text`, begin the assistant's turn: ids that were sampled before
    and are to be continued, and text that the caller forces. The prompt's ids are those of the chat
    template, then `continue_ids`, then `continue_text` encoded by itself; marks of thoughts in that
    text are the model's own tokens, where it has such.

    `template_arguments` go to the chat template beside the messages, as `enable_thinking` does.

    `alone` promises that no other sample of this prompt will ever be asked for, so that no place
    need be kept for one.
    """

    id: str
    messages: Sequence[Message]
    sampling: Sampling
    samples: Sequence[int] = (0,)
    key: int = 0
    continue_ids: tuple[int, ...] = ()
    continue_text: str = ""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One finished sample.

    `token_ids` are the sampled ids (the end-of-turn token among them when it was sampled); `text`
    is their text without special tokens. `continued_ids` are the ids that stood between the chat
    template and the sample (`continue_ids` and the encoded `continue_text`): what was generated as
    a whole is `continued_ids + token_ids`. `logprobs` is one float per sampled token under the
    model itself (temperature 1, no filter), or empty where the generator has none. `thoughts`
    are what a server gave apart from the text (`reasoning_content`); `thinking` says that the chat
    template itself opened the thoughts with which the text begins. `thinks` is False where the
    template is known to hold no mark of thoughts: then a closing mark without an opening one is
    text. `error` says why `finish_reason` is "error" (only that row fails; the others go on);
    `too_long` then says that the prompt, or what was to come after it, is longer than the model or
    the generator's shapes can take."""

    request_id: str
    sample: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[float, ...] = ()
    prompt_tokens: int = 0
    drawn_tokens: int = 0
    """How many tokens were drawn for it, those behind a stop text among them."""
    continued_ids: tuple[int, ...] = ()
    thoughts: str = ""
    thinking: bool = False
    thinks: bool = True
    error: str = ""
    too_long: bool = False


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """Asks for log-probabilities of several `completions`, each as the continuation of one prompt.

    Completions are what the model says: thoughts that the chat template opens are closed before
    `continue_text`.
    """

    id: str
    messages: Sequence[Message]
    completions: Sequence[str]
    continue_text: str = ""
    template_arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Score:
    """`logprobs[c][t]`: log-probability of token t of completion c given all that stands before."""

    request_id: str
    logprobs: tuple[tuple[float, ...], ...]
    error: str = ""
    too_long: bool = False


@dataclass(kw_only=True)
class Usage:
    """What a generator has done so far. Times are wall seconds, FLOPs are the model's (2 x
    params).

    `slot_steps` counts the steps of all decoding slots, `busy_slot_steps` those that drew a token.
    """

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    new_tokens: int = 0
    requests: int = 0
    samples: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    slot_steps: int = 0
    busy_slot_steps: int = 0
    settled_tokens: int = 0
    """New tokens of rows that have finished; a stage counts them."""

    @property
    def tokens_in_hand(self) -> int:
        """New tokens of rows that have not finished: they are lost if the work is stopped."""
        return self.new_tokens - self.settled_tokens

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second of the generator's own time, prefill included."""
        return self.new_tokens / max(self.seconds, 1e-9)

    @property
    def slot_occupancy(self) -> float:
        """Share of the decoding slots' steps that drew a token."""
        return self.busy_slot_steps / max(self.slot_steps, 1)

    @property
    def prefill_share(self) -> float:
        """Share of the generator's time that went into prompts."""
        return self.prefill_seconds / max(self.seconds, 1e-9)

    def since(self, before: Usage) -> Usage:
        """What has been done since these counts were read."""
        names = [field.name for field in dataclasses.fields(self)]
        return Usage(**{name: getattr(self, name) - getattr(before, name) for name in names})

    def figures(self) -> list[Figure]:
        """How fast the generator is, to be shown; nothing before it has drawn a token."""
        found = []
        if self.new_tokens and self.seconds:
            rate = self.tokens_per_second
            found.append(Figure("tokens_per_second", round(rate, 1), f"{rate:,.0f} tokens/s"))
        if self.slot_steps:
            slots, prefill = self.slot_occupancy, self.prefill_share
            found += [
                Figure("slots_in_use", round(slots, 3), f"batch {slots:.0%} full"),
                Figure("prefill_share", round(prefill, 3), f"{prefill:.0%} of the time on prompts"),
            ]
        return found


class Generator(Protocol):
    """Something that answers prompts. See `decoding.generator` for this project's engine."""

    @property
    def can_score(self) -> bool:
        """Whether it has log-probabilities of given completions, see `score`."""

    @property
    def usage(self) -> Usage:
        """What it has done so far."""

    @property
    def in_flight(self) -> int:
        """How many rows a stage keeps open at once, so that a free place always finds work."""

    def submit(self, request: Request) -> None:
        """Queue samples; returns at once. A stage may submit while it iterates `completions`."""

    def completions(self) -> Iterator[Completion]:
        """Yield samples as they finish, in no order; end when nothing is outstanding."""

    def release(self, id: str) -> None:
        """Says that no more samples of this row will be asked for, so that its prompt can be
        dropped."""

    def prefix(self, completion: Completion, chars: int) -> tuple[tuple[int, ...], str]:
        """The longest beginning of a completion's `token_ids`, without the end-of-turn token, whose
        text has at most `chars` characters, and that text; both empty where the generator has no
        token ids."""

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Log-probabilities of given completions, one `Score` per request, in order."""
