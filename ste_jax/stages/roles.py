"""What do the stages share when they ask a model to play a role?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ste_jax.config import identity
from ste_jax.config.schema import RoleKnobs, SamplingKnobs
from ste_jax.generation import Completion, Message, Request, Sampling
from ste_jax.prompts.render import PLACES, Places, Template, load_template
from ste_jax.prompts.thoughts import holds_mark as may_think
from ste_jax.system import hashing
from ste_jax.tasks import Task

JUDGE = "judge"


@dataclass(frozen=True, kw_only=True)
class Role:
    """A role, ready to ask: its template, its sampling, the random key that its samples derive
    from, and the arguments that the model's chat template is given beside the messages."""

    name: str
    template: Template
    sampling: Sampling
    key: int
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def request(
        self, row_id: str, values: Mapping[str, str], history: Sequence[Message] = ()
    ) -> Request:
        """A request for one sample of this role for a row. The template's places are filled with
        `values`; `history` are the turns before it."""
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
    """Why a request was not answered (one of `records.NOT_ASKED`); empty where it was."""
    if found.finish_reason != "error":
        return ""
    return "too_long" if found.too_long else "error"


def places_of(name: str, task: Task) -> Places:
    """The places that the template of a role may hold; the judge's are those of its task."""
    return task.places if name == JUDGE else PLACES[name]


def template_of(name: str, knobs: RoleKnobs, task: Task | None) -> Template:
    """The template of a role; that of the judge must be fit for its `task`.

    Raises:
      RequestError: it cannot be read, or is not fit for this role.
    """
    if name == JUDGE:
        if task is None:
            raise ValueError("the role of the judge has no template without a task")
        return task.load_template(knobs.template)
    return load_template(knobs.template, PLACES[name])


def make_role(
    name: str,
    knobs: RoleKnobs,
    *,
    seed: int,
    chat_template: str | None = None,
    task: Task | None = None,
) -> Role:
    """The role as a config describes it; a judge's template is that of its `task`.

    Where the model's `chat_template` is known and does not read an argument (or thoughts), that
    argument is left out, since it decides nothing.

    Raises:
      RequestError: the template cannot be read.
    """
    arguments = arguments_of(knobs)
    if chat_template is not None and not may_think(chat_template):
        arguments = {key: value for key, value in arguments.items() if key in chat_template}
    return Role(
        name=name,
        template=template_of(name, knobs, task),
        sampling=to_sampling(knobs.sampling),
        key=sample_key(seed, name, 0),
        template_arguments=arguments,
    )


def arguments_of(knobs: RoleKnobs) -> dict[str, Any]:
    """The arguments that a role's knobs give to the chat template; null stands for none."""
    return {key: value for key, value in knobs.template_arguments.items() if value is not None}


def to_sampling(sampling: SamplingKnobs) -> Sampling:
    """Sampling knobs as a generator takes them."""
    return Sampling(**vars(sampling))


def sample_key(seed: int, stage: str, iteration: int) -> int:
    """The random key of a stage in an iteration: 31 bits. Each request adds its row and sample."""
    return hashing.number31(f"{seed}/{stage}/{iteration}")


def role_fingerprint(role: Role) -> list[Any]:
    """What a fingerprint holds of a role: all that decides its answers, except the model."""
    sampling = identity.of(role.sampling, without=("ignore_eos",))
    drawn = ("max_new_tokens", "temperature", "top_p", "top_k", "stop", "min_p")
    found = {
        **identity.of(role),
        "template": role.template.fingerprint(),
        "sampling": identity.in_a_row(sampling, *drawn),
    }
    asked = ("name", "template", "sampling", "key", "template_arguments")
    return identity.in_a_row(found, *asked)


def last_user_text(messages: Sequence[Message]) -> str:
    """The text of the last user turn."""
    return str(messages[_last_user_turn(messages)]["content"])


def history_of(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The turns before the last user turn."""
    return tuple(messages[: _last_user_turn(messages)])


def _last_user_turn(messages: Sequence[Message]) -> int:
    return max(place for place, turn in enumerate(messages) if turn["role"] == "user")
