"""What must a judge remember, so that it is asked as it was trained?

Its prompt, how its text is drawn, and whether a verdict is forced. The whole template is kept, not
its name: the file it came from may change or be gone. A checkpoint has the card in its provenance,
a Hugging Face directory in `ste_judge.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ste_jax.config import from_plain
from ste_jax.config.schema import Config, JudgeKnobs, RoleKnobs, RoleSet, SamplingKnobs
from ste_jax.config.template_arguments import check_arguments
from ste_jax.prompts.render import Template, check_template, load_template
from ste_jax.stages.roles import arguments_of

FILE = "ste_judge.json"


@dataclass(frozen=True, kw_only=True)
class JudgeCard:
    """How a judge is asked."""

    template: Template
    sampling: SamplingKnobs
    knobs: JudgeKnobs
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is given beside the messages."""


def of_config(config: Config) -> JudgeCard:
    """The card of the judges that a run trains."""
    return _card(config.roles.judge, config.judge)


def default() -> JudgeCard:
    """The card of a model that remembers nothing: as a run without knobs of its own asks its seed,
    and as many new tokens as the model allows."""
    return _card(RoleSet().judge, JudgeKnobs())


def _card(role: RoleKnobs, knobs: JudgeKnobs) -> JudgeCard:
    return JudgeCard(
        template=load_template(role.template, "judge"),
        sampling=role.sampling,
        knobs=knobs,
        template_arguments=arguments_of(role),
    )


def to_dict(card: JudgeCard) -> dict[str, Any]:
    """Plain values for a checkpoint's provenance or a file; empty arguments are left out, as when
    there were none."""
    values = dataclasses.asdict(card)
    if not card.template_arguments:
        del values["template_arguments"]
    return values


def from_dict(values: Mapping[str, Any], where: str) -> JudgeCard:
    """The card that `to_dict` gave, and that was kept in the file `where`.

    Raises:
      RequestError: a key is unknown or missing, a value has the wrong type, or the template would
        not ask what a judge is to be asked.
    """
    card: JudgeCard = from_plain.build(JudgeCard, values, where, "judge")
    check_arguments(card.template_arguments, f"{where}: judge.template_arguments")
    asked = dataclasses.asdict(card.template)
    del asked["name"]
    check_template(asked, f"judge.template of {where}", "judge")
    return card
