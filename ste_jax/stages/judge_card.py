"""What must a judge remember, so that it is asked as it was trained?

It must remember its task, its prompt, how its text is sampled, and whether a verdict is forced. The
whole template is kept, not its name: the file it came from may change or be gone. A checkpoint has
the card in its provenance, a Hugging Face directory in `ste_judge.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ste_jax.config import from_plain, identity
from ste_jax.config.judging import filled
from ste_jax.config.schema import Config, JudgeKnobs, RoleKnobs, RoleSet, SamplingKnobs
from ste_jax.config.template_arguments import check_arguments
from ste_jax.prompts.render import Template, check_template
from ste_jax.stages.roles import arguments_of
from ste_jax.tasks import Task, task_named

FILE = "ste_judge.json"


@dataclass(frozen=True, kw_only=True)
class JudgeCard:
    """How a judge is asked."""

    template: Template
    sampling: SamplingKnobs
    knobs: JudgeKnobs
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """The arguments that the chat template is given beside the messages."""

    @property
    def task(self) -> Task:
        """The way the judge judges."""
        return task_named(self.knobs.task)

    def check(self, key: str) -> None:
        """Raise `RequestError` for arguments that no chat template takes, or for an unknown
        task."""
        check_arguments(self.template_arguments, f"{key}.template_arguments")
        task_named(self.knobs.task)


def of_config(config: Config) -> JudgeCard:
    """The card of the judges that a run trains."""
    return _card(config.roles.judge, config.judge)


def default() -> JudgeCard:
    """The card of a model that has none: it is asked as a run with default knobs asks its seed
    model, with as many new tokens as the model allows."""
    return _card(RoleSet().judge, JudgeKnobs())


def _card(role: RoleKnobs, knobs: JudgeKnobs) -> JudgeCard:
    return JudgeCard(
        template=task_named(knobs.task).load_template(role.template),
        sampling=role.sampling,
        knobs=filled(knobs),
        template_arguments=arguments_of(role),
    )


def to_dict(card: JudgeCard) -> dict[str, Any]:
    """The card as plain values, for a checkpoint's provenance or a file. They are those that
    fingerprints hold, since a run imports its seed again where the card is another."""
    return identity.of(card)


def from_dict(values: Mapping[str, Any], where: str) -> JudgeCard:
    """The card that `to_dict` gave, and that was kept in the file `where`.

    Raises:
      RequestError: a key is unknown or missing, a value has the wrong type, there is no such task,
        or the template would not ask what its judge is to be asked.
    """
    if isinstance(values, Mapping):
        values = identity.complete(JudgeCard, values)
    card: JudgeCard = from_plain.build(JudgeCard, values, where, "judge")
    asked = dataclasses.asdict(card.template)
    del asked["name"]
    check_template(asked, f"judge.template of {where}", card.task.places)
    return dataclasses.replace(card, knobs=filled(card.knobs))
