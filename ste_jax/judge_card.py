"""What must a judge's checkpoint remember, so that it is asked as it was trained?

Its prompt, how its text is drawn, and whether a verdict is forced. The whole template is kept, not
its name: the file it came from may change or be gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ste_jax.config import Config, JudgeKnobs, SamplingKnobs
from ste_jax.prompts.render import Template, load_template


@dataclass(frozen=True, kw_only=True)
class JudgeCard:
    """How a judge is asked."""

    template: Template
    sampling: SamplingKnobs
    knobs: JudgeKnobs


def of_config(config: Config) -> JudgeCard:
    """The card of the judges that a run trains."""
    role = config.roles.judge
    return JudgeCard(
        template=load_template(role.template, "judge"),
        sampling=role.sampling,
        knobs=config.judge,
    )


def default() -> JudgeCard:
    """The card of a model that remembers nothing: the shipped judge prompt, no force."""
    return JudgeCard(
        template=load_template("judge", "judge"), sampling=SamplingKnobs(), knobs=JudgeKnobs()
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
    sampling = {**values["sampling"], "stop": tuple(values["sampling"]["stop"])}
    return JudgeCard(
        template=Template(**template),
        sampling=SamplingKnobs(**sampling),
        knobs=JudgeKnobs(**values["knobs"]),
    )
