"""What must a judge's checkpoint remember, so that it is asked as it was trained?

Its prompt, how much it may write, and whether a verdict is forced. The whole template is kept, not
its name: the file it came from may change or be gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ste_jax.config import Config, JudgeKnobs
from ste_jax.prompts.render import Template, load_template


@dataclass(frozen=True, kw_only=True)
class JudgeCard:
    """How a judge is asked."""

    template: Template
    max_new_tokens: int
    knobs: JudgeKnobs


def of_config(config: Config) -> JudgeCard:
    """The card of the judges that a run trains."""
    role = config.roles.judge
    return JudgeCard(
        template=load_template(role.template, "judge"),
        max_new_tokens=role.sampling.max_new_tokens,
        knobs=config.judge,
    )


def default() -> JudgeCard:
    """The card of a model that remembers nothing: the shipped judge prompt, no force."""
    return JudgeCard(
        template=load_template("judge", "judge"), max_new_tokens=512, knobs=JudgeKnobs()
    )


def to_dict(card: JudgeCard) -> dict[str, Any]:
    """Plain values for a checkpoint's provenance."""
    return dataclasses.asdict(card)


def from_provenance(provenance: Mapping[str, Any]) -> JudgeCard:
    """The card in a checkpoint's provenance, or the default where there is none."""
    values = provenance.get("judge")
    if not values:
        return default()
    template = {**values["template"], "examples": tuple(values["template"]["examples"])}
    return JudgeCard(
        template=Template(**template),
        max_new_tokens=values["max_new_tokens"],
        knobs=JudgeKnobs(**values["knobs"]),
    )
