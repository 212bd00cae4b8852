"""Which phases of fine-tuning are there?"""

from __future__ import annotations

from ste_jax.config.schema import Config
from ste_jax.finetuning.train_step import check_batch
from ste_jax.parallel.sharding import make_mesh
from ste_jax.pipeline.phases.dpo import DpoPhase
from ste_jax.pipeline.phases.phase import Phase
from ste_jax.pipeline.phases.sft import SftPhase
from ste_jax.reporting.phases import PhaseReport
from ste_jax.system.errors import RequestError

PHASES: dict[str, Phase] = {phase.name: phase for phase in (SftPhase(), DpoPhase())}
"""The phases by their names in `finetune.stages`."""


def phases_of(config: Config) -> list[Phase]:
    """The phases of a run, in their order.

    Raises:
      RequestError: `finetune.stages` names one that there is not.
    """
    for name in config.finetune.stages:
        if name not in PHASES:
            raise RequestError(
                f"finetune.stages: there is no phase {name!r}; there are {', '.join(PHASES)}"
            )
    return [PHASES[name] for name in config.finetune.stages]


def check_phases(config: Config) -> None:
    """Refuse, as soon as the config is read, what a phase would refuse only after hours of other
    work. No device is asked for.

    Raises:
      RequestError: names the knobs.
    """
    for phase in phases_of(config):
        phase.check(config)


def check_batches(config: Config) -> None:
    """Refuse, before anything is begun, rows that cannot be divided on the devices.

    Raises:
      RequestError: names the knobs.
    """
    mesh = make_mesh(config.finetune.mesh)
    for phase in phases_of(config):
        check_batch(phase.training_knobs(config), mesh)


def phase_reports() -> dict[str, PhaseReport]:
    """By name: what tables and report show of each phase."""
    return {name: phase.report for name, phase in PHASES.items()}
