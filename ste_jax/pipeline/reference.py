"""How likely does the model that a phase begins with find the judgments of its pairs?

It is asked once, and its log-probabilities are kept, shard by shard.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

from etils import epath

from ste_jax.config.identity import Identity, fingerprint
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.objectives import Preference
from ste_jax.finetuning.reference import reference_scores
from ste_jax.model_io.open_model import Opened
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.intake import model_of
from ste_jax.records import ReferenceScore
from ste_jax.run import marks
from ste_jax.run.changes import Changes, RecipeStep, counted
from ste_jax.run.layout import IterationDir
from ste_jax.run.tables import Table
from ste_jax.system import preemption, progress
from ste_jax.system.errors import WorkError


@dataclass(frozen=True)
class Reference:
    """The log-probabilities of an iteration's pairs, and what they were made of."""

    pairs: Table[Any]
    scores: Table[ReferenceScore]
    mark: epath.Path
    made_of: Identity
    """The fingerprint of what they are to be made of."""
    changes: Changes

    @property
    def step(self) -> RecipeStep:
        """What messages call it."""
        index = self.mark.parent.name
        return RecipeStep(
            title=f"reference {index}",
            takes=(f"prefer {index}",),
            model="the judge that the phase begins with",
            inputs="the set of preferences",
        )

    def check(self) -> None:
        """Take up what was set aside, and read the scores. Process 0 alone."""
        if (marks.aside(self.mark, self.made_of) / self.scores.directory.name).exists():
            self._change_over("what was set aside comes back")
        self.scores.check()  # no other step reads them again

    def missing(self) -> list[int]:
        """The shards without scores. Process 0 alone."""
        self._change_over(f"{_scored(self.pairs.count())} again")
        return [shard for shard in range(self.scores.shards) if not self.scores.done(shard)]

    def _change_over(self, what: str) -> None:
        there = marks.marked(self.mark)
        announce = partial(self.changes.again, self.step, what, there, self.made_of)
        marks.change_over(self.mark, [self.scores.directory], self.made_of, announce)


def _scored(number: int) -> str:
    return f"{counted(number, 'pairs')} {'is' if number == 1 else 'are'} scored"


def reference_fingerprint(parent: IterationDir, knobs: TrainingKnobs, data: str) -> Identity:
    """The fingerprint of what a judge says of the pairs of a hash `data`, in batches as `knobs`
    have them."""
    shape = [knobs.sequence_length, knobs.batch_rows, knobs.accumulate, knobs.dtype]
    return fingerprint(
        "reference", 1, [*shape, knobs.param_dtype], model=model_of(parent), inputs=data
    )


def with_reference(
    context: Context,
    preferences: list[Preference],
    reference: Reference,
    opened: Opened,
    knobs: TrainingKnobs,
) -> list[Preference]:
    """The preferences with the model's log-probabilities. Those that fit no row stay without.

    Raises:
      Preempted: asked to stop; finished shards are kept.
    """
    by_id, table = {each.id: each for each in preferences}, reference.scores
    shards = {
        shard: [by_id[row.id] for row in reference.pairs.read(shard)]
        for shard in range(table.shards)
    }
    todo = context.processes.from_first("reference", reference.missing)
    known = {
        row.id: (row.chosen_logprob, row.rejected_logprob)
        for shard in shards
        if shard not in todo
        for row in table.read(shard)
    }
    total = sum(len(shards[shard]) for shard in todo)
    with progress.work(reference.step.title, total, "pairs") as shown:
        for shard, scores in reference_scores(
            opened.model, shards, todo, knobs, opened.mesh, preemption.requested, shown.add
        ):
            # Every process has them all: none need read what another has just written.
            known |= scores
            if context.processes.first:
                rows = (
                    ReferenceScore(id=id, chosen_logprob=chosen, rejected_logprob=rejected)
                    for id, (chosen, rejected) in scores.items()
                )
                table.write(shard, rows)
    context.processes.barrier(reference.step.title)
    lacking = [e.id for e in preferences if e.length <= knobs.sequence_length and e.id not in known]
    if lacking:
        raise WorkError(
            f"{table.directory} lacks the score of {lacking[0]}; move it away and run again: it is "
            "made anew"
        )
    return [dataclasses.replace(each, reference=known.get(each.id)) for each in preferences]
