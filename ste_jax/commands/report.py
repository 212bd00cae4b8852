"""Which tables of a run are printed, by `ste report` and at the end of other commands?"""

from __future__ import annotations

from etils import epath

from ste_jax.reporting.html import write_report
from ste_jax.reporting.phases import Reports
from ste_jax.reporting.stage import stage_summary
from ste_jax.reporting.tables import summary
from ste_jax.run.layout import RunDir


def report(directory: str, reports: Reports) -> str:
    """Write the HTML report of a run; returns its tables.

    Raises:
      RequestError: not a run. WorkError: a damaged table, or the file cannot be written.
    """
    run = RunDir(epath.Path(directory))
    write_report(run, reports)
    return tables_of(run, reports)


def tables_of(run: RunDir, reports: Reports) -> str:
    """The tables of a run, and the path of its report."""
    return f"{summary(run, reports)}\n\nreport: {run.report}"


def stage_report(root: str, stage: str, iteration: int, reports: Reports, since: float) -> str:
    """What the command of one stage did, and what is there now (see `stage_summary`)."""
    return stage_summary(RunDir(epath.Path(root)), stage, iteration, reports, since)
