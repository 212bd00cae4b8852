"""How is a run shown in one HTML file that needs nothing else?

Each section is a function from the run to markup; if its part of the run is not done yet, the
section says so. The file holds no time or date: the same run gives the same bytes.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from ste_jax.reporting.examples import heldout_examples
from ste_jax.reporting.funnel import funnel, read_config, task_of
from ste_jax.reporting.lengths import length_table, lengths_section
from ste_jax.reporting.page import Safe, note, page, section, tag
from ste_jax.reporting.phases import Reports
from ste_jax.reporting.sections.accuracy import (
    agreement_section,
    difference_section,
    labelled_sections,
)
from ste_jax.reporting.sections.common import NOT_YET
from ste_jax.reporting.sections.reading import reading_section
from ste_jax.reporting.sections.rows import funnel_section, judgments_section
from ste_jax.reporting.sections.training import loss_section, work_section
from ste_jax.reporting.tables import cells
from ste_jax.run.layout import RunDir
from ste_jax.system import files, hashing


def write_report(run: RunDir, reports: Reports) -> epath.Path:
    """Write `report/index.html` of a run, however far it has come; returns its path.

    Raises:
      RequestError: not a run. WorkError: a damaged table, or the file cannot be written.
    """
    counts, lengths, task = funnel(run, reports), length_table(run), task_of(run)
    config = read_config(run)
    evaluated = [each for each in run.iterations() if each.evaluation.exists()]
    evaluations = {each.index: files.read_json(each.evaluation) for each in evaluated}
    title = f"Self-taught evaluator: {config.get('name', run.root.name)}"
    text = page(
        title,
        tag("h1", title),
        _run_section(run, config, list(evaluations)),
        agreement_section(task, evaluations),
        *labelled_sections(run, task, evaluations),
        difference_section(task, evaluated, evaluations, config),
        funnel_section(counts, reports),
        lengths_section(lengths, *cells(lengths)),
        judgments_section(task, counts, reports),
        work_section(run, counts, reports),
        loss_section(run, reports),
        reading_section(task, heldout_examples(run)),
        _config_section(run),
    )
    files.write_whole(run.report, text.encode("utf-8", "replace"))
    return run.report


def _run_section(run: RunDir, config: dict[str, Any], evaluated: list[int]) -> Safe:
    digest = "not written yet"
    if run.config.exists():
        digest = hashing.hex_digest(run.config.read_bytes(), 8)
    asked = config.get("iterations", "?")
    facts = {
        "seed model": str(config.get("model", "?")),
        "config digest": digest,
        "random seed": str(config.get("seed", "?")),
        "iterations": f"{max(evaluated, default=0)} of {asked} evaluated",
    }
    rows = [tag("tr", tag("th", key), tag("td", value)) for key, value in facts.items()]
    return section("This run", tag("table", rows, class_="facts"))


def _config_section(run: RunDir) -> Safe:
    if not run.config.exists():
        return section("Config", note(NOT_YET))
    text = tag("pre", run.config.read_text(encoding="utf-8"), class_="words code")
    return section("Config", tag("details", tag("summary", "config.yaml as resolved"), text))
