"""What do the stages share when they ask a model to play a role?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ste_jax.config import RoleKnobs, SamplingKnobs
from ste_jax.generators.protocol import Message, Request, Sampling
from ste_jax.prompts.render import Template, load_template


@dataclass(frozen=True, kw_only=True)
class Role:
    """A role, ready to ask: its template, its sampling, and the key that its samples derive
    from."""

    name: str
    template: Template
    sampling: Sampling
    key: int

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
            alone=True,
        )


def make_role(name: str, knobs: RoleKnobs, *, seed: int) -> Role:
    """The role as a config describes it.

    Raises:
      RequestError: the template cannot be read.
    """
    return Role(
        name=name,
        template=load_template(knobs.template, name),
        sampling=to_sampling(knobs.sampling),
        key=sample_key(seed, name, 0),
    )


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
    return [role.name, role.template.fingerprint(), knobs, role.key]


def last_user_text(messages: Sequence[Message]) -> str:
    """The text of the last user turn."""
    return str(messages[_last_user_turn(messages)]["content"])


def history_of(messages: Sequence[Message]) -> tuple[Message, ...]:
    """What was said before the last user turn."""
    return tuple(messages[: _last_user_turn(messages)])


def _last_user_turn(messages: Sequence[Message]) -> int:
    return max(place for place, turn in enumerate(messages) if turn["role"] == "user")
