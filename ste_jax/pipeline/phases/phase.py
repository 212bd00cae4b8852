"""What is a phase of an iteration's fine-tuning?

One object that says by which knobs it trains, what it asks of the steps before it, where its rows
come from, and what tables and report tell of it. `ste_jax.pipeline.phases.PHASES` holds them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from ste_jax.config.schema import Config
from ste_jax.finetuning.batch_source import BatchSource
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.model_io.open_model import Opened
from ste_jax.pipeline.context import Context
from ste_jax.reporting.phases import PhaseReport
from ste_jax.run.layout import IterationDir
from ste_jax.run.tables import Table


@dataclass(frozen=True, kw_only=True)
class PhaseDirs:
    """The directories that a phase of an iteration reads from and writes to."""

    here: IterationDir
    """The iteration, with the rows that were chosen for it."""
    out: IterationDir
    """The directory of the phase's judge; that of the iteration if the phase is the last."""
    parent: IterationDir
    """The directory of the judge that the phase begins with."""


class Phase:
    """A phase of fine-tuning. A new one defines at least `name`, `step`, `training_knobs`, `table`
    and `source`."""

    name: str
    """Its name in `finetune.stages`, in directories and in checkpoints."""
    step: str
    """The name of its step in fingerprints."""
    chosen_by = "curate"
    """What messages call the step that chooses its rows."""
    report = PhaseReport()

    def training_knobs(self, config: Config) -> TrainingKnobs:
        """The knobs that its training reads."""
        raise NotImplementedError

    def identity(self, config: Config) -> list[Any]:
        """What a fingerprint holds of its knobs."""
        return [self.training_knobs(config).identity()]

    def named(self, config: Config) -> dict[str, Any]:
        """Its knobs by the names that they have in a config, to tell which one has changed."""
        return self.training_knobs(config).named()

    def check(self, config: Config) -> None:
        """Raises `RequestError` where knobs contradict the phase, before anything is begun."""

    def made_of_judgments(self, config: Config, here: IterationDir) -> Sequence[epath.Path]:
        """The files made of the judgments of `annotate`, which are removed where these are made
        anew. It is called on every phase, also on those that the run does not have."""
        return ()

    def asks(self, config: Config) -> Sequence[tuple[str, int]]:
        """The steps in which it has judgments made: title without the iteration, and the most
        judgments of a prompt."""
        return ()

    def annotate(self, context: Context, iteration: int) -> None:
        """Have more judgments made by the judge that `annotate` asked, or set those aside that are
        no longer wanted. It is called on every phase, also on those that the run does not have."""

    def needed(self, config: Config, here: IterationDir) -> Sequence[Table[Any]]:
        """The tables, besides the judgments of `annotate`, without which the phase cannot begin."""
        return ()

    def curate(self, context: Context, iteration: int) -> None:
        """Choose the phase's rows among the judgments of `annotate`."""

    def prepare(self, context: Context, dirs: PhaseDirs) -> None:
        """Do the work that needs the judge with which the phase begins."""

    def table(self, here: IterationDir) -> Table[Any]:
        """The rows that it trains on."""
        raise NotImplementedError

    def source(
        self,
        context: Context,
        dirs: PhaseDirs,
        data: str,
        opened: Opened,
        arguments: Mapping[str, Any],
    ) -> BatchSource:
        """Where the rows of each step come from, and what is minimized on them.

        `data` is a hash of the ids in `table`, `opened` the judge that it begins with, `arguments`
        are the chat template's. Raises `WorkError` where there is nothing to train on.
        """
        raise NotImplementedError

    def check_done(self, context: Context, dirs: PhaseDirs, data: str) -> None:
        """Check, once the phase's judge is there, the tables that no other step reads again.
        Process 0 alone."""
