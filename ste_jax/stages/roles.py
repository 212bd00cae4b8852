"""What do the stages share when they ask a model to play a role?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ste_jax.config.schema import RoleKnobs, SamplingKnobs
from ste_jax.generation import Completion, Message, Request, Sampling
from ste_jax.prompts.render import Template, load_template
from ste_jax.prompts.thoughts import holds_mark as may_think


@dataclass(frozen=True, kw_only=True)
class Role:
    """A role, ready to ask: its template, its sampling, the key that its samples derive from, and
    what the model's chat template is given beside the messages."""

    name: str
    template: Template
    sampling: Sampling
    key: int
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def request(
        self, row_id: str, values: Mapping[str, str], history: Sequence[Message] = ()
    ) -> Request:
        """A sample of this role for a row, the template's places filled with `values`, after what
        was said before in the row's conversation."""
        return Request(
            id=f"{row_id}/{self.name}",
            messages=self.template.messages(history, **values),
            sampling=self.sampling,
            key=self.key,
            continue_text=self.template.start,
            template_arguments=self.template_arguments,
            alone=True,
        )


def unasked(found: Completion) -> str:
    """Why a request was not answered (one of `records.NOT_ASKED`); nothing where it was."""
    if found.finish_reason != "error":
        return ""
    return "too_long" if found.too_long else "error"


def make_role(name: str, knobs: RoleKnobs, *, seed: int, chat_template: str | None = None) -> Role:
    """The role as a config describes it. Where the model's `chat_template` is known and has nothing
    to do with thoughts or with an argument, that is left out: it decides nothing.

    Raises:
      RequestError: the template cannot be read.
    """
    arguments = arguments_of(knobs)
    if chat_template is not None and not may_think(chat_template):
        arguments = {key: value for key, value in arguments.items() if key in chat_template}
    return Role(
        name=name,
        template=load_template(knobs.template, name),
        sampling=to_sampling(knobs.sampling),
        key=sample_key(seed, name, 0),
        template_arguments=arguments,
    )


def arguments_of(knobs: RoleKnobs) -> dict[str, Any]:
    """The arguments that a role's knobs give to the chat template; null stands for none."""
    return {key: value for key, value in knobs.template_arguments.items() if value is not None}


def to_sampling(sampling: SamplingKnobs) -> Sampling:
    """Sampling knobs as a generator takes them."""
    return Sampling(
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        stop=sampling.stop,
    )


def sample_key(seed: int, stage: str, iteration: int) -> int:
    """31 bits from (run seed, stage, iteration); the row and the sample come in at the request."""
    digest = hashlib.blake2b(f"{seed}/{stage}/{iteration}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def role_fingerprint(role: Role) -> list[Any]:
    """All that decides what the role is asked and how it answers, but for the model."""
    sampling = role.sampling
    knobs = [
        sampling.max_new_tokens,
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        list(sampling.stop),
    ]
    # A filter that is off says nothing, as when there was none.
    knobs += [sampling.min_p] if sampling.min_p else []
    arguments = [dict(role.template_arguments)] if role.template_arguments else []
    return [role.name, role.template.fingerprint(), knobs, role.key, *arguments]


def last_user_text(messages: Sequence[Message]) -> str:
    """The text of the last user turn."""
    return str(messages[_last_user_turn(messages)]["content"])


def history_of(messages: Sequence[Message]) -> tuple[Message, ...]:
    """What was said before the last user turn."""
    return tuple(messages[: _last_user_turn(messages)])


def _last_user_turn(messages: Sequence[Message]) -> int:
    return max(place for place, turn in enumerate(messages) if turn["role"] == "user")
