"""What does DPO leave in an iteration's directory?"""

from __future__ import annotations

import dataclasses

from etils import epath

from ste_jax.config.identity import Identity
from ste_jax.pipeline.reference import Reference
from ste_jax.records import Judgment, ReferenceScore, TrainingExample
from ste_jax.run.changes import Changes
from ste_jax.run.layout import IterationDir
from ste_jax.run.tables import Table


@dataclasses.dataclass(frozen=True)
class DpoDir:
    """The tables and files of DPO in an iteration's directory, besides its judge."""

    here: IterationDir

    @property
    def judgments(self) -> Table[Judgment]:
        """Judgments of the iteration's prompts by the judge that SFT trained."""
        return self.here.table(Judgment, "dpo_judgments")

    @property
    def more_judgments(self) -> Table[Judgment]:
        """Judgments drawn in addition for prompts of which no judgment had failed."""
        return self.here.table(Judgment, "more_judgments")

    @property
    def more_mark(self) -> epath.Path:
        """The mark that says what the additional judgments were made of."""
        return self.here.root / "annotate_more.mark.json"

    @property
    def more_places(self) -> list[epath.Path]:
        """Where the additional judgments lie, those of unfinished shards among them."""
        return [self.more_judgments.directory, self.here.root / "annotate_more.journal"]

    @property
    def preferences(self) -> Table[TrainingExample]:
        """The pairs of judgments."""
        return self.here.table(TrainingExample, "preferences")

    @property
    def preference_counts(self) -> epath.Path:
        """Counts of the pairs, and of what was not paired, and why (JSON)."""
        return self.here.root / "preferences.json"

    @property
    def preferences_mark(self) -> epath.Path:
        """The mark that says what the pairs were made of."""
        return self.here.root / "prefer.mark.json"

    def made_of_judgments(self) -> tuple[epath.Path, ...]:
        """The files that are removed where the judgments they are made of are made anew."""
        return self.preferences_mark, self.preference_counts, self.preferences.directory

    def reference(self, made_of: Identity, changes: Changes) -> Reference:
        """The log-probabilities of the pairs' judgments by the model that DPO begins with."""
        scores, mark = self.here.table(ReferenceScore, "reference"), "reference.mark.json"
        return Reference(self.preferences, scores, self.here.root / mark, made_of, changes)
