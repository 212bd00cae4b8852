"""What does a phase of fine-tuning add to tables and report?

Reporting knows no phase by name: the caller gives a `PhaseReport` for each phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ste_jax.run.layout import IterationDir

Counts = dict[str, int]
Step = tuple[str, int, Counts]
"""A step's name, the rows that passed it, and how many did not for which reason."""
Equation = tuple[str, int, int]
"""What must be equal, in words, and the values of both sides."""


class PhaseReport:
    """What tables and report show of a phase. This base class shows nothing but its name."""

    plain = False
    """Whether the phase learns the rows of `training`. Where a run has no other phase, its name is
    left out of tables."""
    work = ""
    """What the table of work calls the phase's optimizer steps; empty: `train NAME`."""
    learnt = "it was trained: {examples:,} examples, {step:,} steps."
    """The end of a sentence of the model's card, on what was done with the earlier judge's
    reasoning."""
    note = ""
    """A remark below the table of fine-tuning."""
    example_columns: Sequence[str] = ()
    """Columns of the table of fine-tuning beside `examples`."""
    step_columns: Sequence[str] = ()
    """Measures of the last optimizer step that are columns of the table, named `last_...`."""

    def counts(self, iteration: IterationDir, knobs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Counts of what the phase learns from, JSON-able; None if there is nothing to show. Its
        `judgments` are those that were drawn for this phase alone. `knobs` are those of `finetune`,
        as in config.yaml."""
        return None

    def steps(self, counts: dict[str, Any]) -> list[Step]:
        """The steps that the phase adds to the funnel after the prompts."""
        return []

    def equations(self, counts: dict[str, Any], prompts: int) -> list[Equation]:
        """The equations that must hold once all `prompts` of the iteration are judged."""
        return []

    def drawn(self, counts: dict[str, Any]) -> str:
        """A sentence on the judgments that were drawn for this phase alone; may be empty."""
        return ""

    def of_examples(self, iteration: IterationDir) -> dict[str, Any]:
        """The values of `example_columns`."""
        return {}


Reports = Mapping[str, PhaseReport]
"""Name of a phase -> its report."""


def report_of(reports: Reports, name: str | None) -> PhaseReport:
    """The report of a phase; that of the plain phase without a name, as in earlier versions."""
    return reports.get(name_of(reports, name), PhaseReport())


def name_of(reports: Reports, name: str | None) -> str:
    """The name of a phase; that of the plain one where none was written."""
    return name or next((each for each, report in reports.items() if report.plain), "")
