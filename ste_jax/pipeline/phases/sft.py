"""How does a judge learn from judgments that came to the right verdict? By fine-tuning on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from ste_jax.config.schema import Config
from ste_jax.finetuning.batch_source import BatchSource, PlannedRows
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.model_io.open_model import Opened
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.curate import curate
from ste_jax.pipeline.phases.phase import Phase, PhaseDirs
from ste_jax.pipeline.units import check_verdicts, make_examples
from ste_jax.records import TrainingExample
from ste_jax.reporting.phases import PhaseReport
from ste_jax.run.layout import IterationDir
from ste_jax.run.tables import Table
from ste_jax.tasks import task_named


class SftReport(PhaseReport):
    """What tables and report show of SFT."""

    plain = True
    work = "train"
    learnt = "what came to the right verdict was learnt: {examples:,} judgments, {step:,} steps."


class SftPhase(Phase):
    """Supervised fine-tuning on the judgments that were kept."""

    name = "sft"
    step = "finetune"
    report: PhaseReport = SftReport()

    def training_knobs(self, config: Config) -> TrainingKnobs:
        """The knobs of `finetune` itself."""
        return TrainingKnobs.of(config.finetune)

    def made_of_judgments(self, config: Config, here: IterationDir) -> Sequence[epath.Path]:
        """The training rows, and their counts."""
        return here.curate_mark, here.curation, here.training.directory

    def curate(self, context: Context, iteration: int) -> None:
        """Choose one judgment of each prompt."""
        curate(context, iteration)

    def table(self, here: IterationDir) -> Table[TrainingExample]:
        """The judgments that were kept."""
        return here.training

    def source(
        self,
        context: Context,
        dirs: PhaseDirs,
        data: str,
        opened: Opened,
        arguments: Mapping[str, Any],
    ) -> BatchSource:
        """All kept judgments, planned before the first step."""
        knobs = self.training_knobs(context.config)
        rows = list(self.table(dirs.here).rows())
        examples = make_examples(rows, opened.tokenizer, arguments)
        if task_named(context.config.judge.task).classes:
            check_verdicts(self.name, dirs.out.index, rows, examples, knobs)
        return PlannedRows(examples, knobs, context.config.seed)
