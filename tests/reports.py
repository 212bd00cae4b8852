"""What the phases of fine-tuning tell of themselves, for tests of tables and reports."""

from __future__ import annotations

from ste_jax.pipeline.phases import phase_reports

REPORTS = phase_reports()
