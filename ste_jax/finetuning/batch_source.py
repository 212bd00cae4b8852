"""Where do the rows of each optimizer step come from?

The training loop asks a `BatchSource` for them, step by step. `PlannedRows` has them all planned
before the first; another source may make them from the weights in training, as rollouts are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ste_jax.finetuning import packing
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.objectives import Objective, Sft, units_of
from ste_jax.finetuning.packing import Rows, Unit
from ste_jax.models.decoder import Decoder
from ste_jax.system.errors import WorkError


class StepRows(NamedTuple):
    """What one step trains on."""

    rows: Rows
    ids: Sequence[str]
    """The ids of the units in the rows, for messages."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Ids of the units that are not trained on, or only in part, in order."""

    too_long: Sequence[str] = ()
    """Units that are longer than a row."""
    truncated: Sequence[str] = ()
    """Units whose end was cut off to fit a row."""
    unweighted: Sequence[str] = ()
    """Units without a token to learn."""


class BatchSource(Protocol):
    """Gives the rows of each step. Every process has the same source, and is given the same rows by
    it."""

    @property
    def objective(self) -> Objective:
        """What is minimized on the rows, which hold the fields that it needs."""

    @property
    def steps(self) -> int:
        """How many steps there are; above 0."""

    @property
    def examples(self) -> int:
        """How many units it was given, for the record."""

    @property
    def needs_model(self) -> bool:
        """Whether rows are made from the weights in training. If not, the next step's rows are
        prepared while a step runs."""

    @property
    def left_out(self) -> LeftOut:
        """What is not trained on."""

    def identity(self) -> Iterable[Any]:
        """JSON-able values that, with knobs, seed and weights, decide all rows. Where they differ,
        it is another training."""

    def rows(self, step: int, model: Decoder | None) -> StepRows:
        """The rows of a step, counted from 0: arrays of the same shapes at every step.

        A resumed training asks again for steps that it had rows of, and must get the same rows: so
        draw whatever is random by the step's number. `model` has the weights in training, on the
        training mesh, as an ordinary model; its arrays are gone once the step is taken. It is None
        for a source that does not need it.
        """


class PlannedRows:
    """Rows of given units, of which all steps are planned before the first."""

    needs_model = False

    def __init__(
        self,
        units: Sequence[Unit],
        knobs: TrainingKnobs,
        seed: int,
        objective: Objective | None = None,
    ) -> None:
        """Plan `units`, in whatever order they come; the objective is SFT where none is given.

        Raises:
          RequestError: the knobs allow no step.
          WorkError: there is nothing to train on.
        """
        self.objective: Objective = objective or Sft()
        self._knobs = knobs
        self.examples = len(units)
        self._units, truncated = packing.cut_to_fit(units, knobs)
        self._plan = plan = packing.plan(self._units, knobs, seed)
        self.steps = len(plan.steps)
        self.left_out = LeftOut(
            too_long=plan.too_long, truncated=truncated, unweighted=plan.unweighted
        )
        if not self.steps:
            raise WorkError(self._nothing_to_train_on())

    def identity(self) -> Iterable[Any]:
        """What the rows are made of: all units, in the order of their ids."""
        return units_of(self._units)

    def rows(self, step: int, model: Decoder | None = None) -> StepRows:
        """The planned rows of a step."""
        members = self._plan.steps[step]
        rows = packing.fill(
            members,
            self._units,
            count=self._knobs.batch_rows,
            sequence_length=self._knobs.sequence_length,
            targets_per_row=self._plan.targets_per_row,
        )
        most = self._plan.units_per_row
        rows = self.objective.add_fields(rows, members, self._units, most)
        return StepRows(rows, self._plan.ids(step, self._units))

    def _nothing_to_train_on(self) -> str:
        if not self._units:
            return "there is nothing to fine-tune on: no example was given"
        longest = max(unit.length for unit in self._units)
        return (
            f"there is nothing to fine-tune on: of {len(self._units)} examples "
            f"{len(self.left_out.too_long)} are longer than {self._knobs.group}.sequence_length="
            f"{self._knobs.sequence_length} (the longest has {longest} tokens) and "
            f"{len(self.left_out.unweighted)} have no token to learn"
        )
