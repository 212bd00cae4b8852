"""How do the judges of a run become better, iteration by iteration, as figures to be plotted?"""

from __future__ import annotations

from typing import Any

from etils import epath

from ste_jax.run.layout import IterationDir, RunDir
from ste_jax.run.metrics_log import read_metrics
from ste_jax.system import files
from ste_jax.system.errors import WorkError

HELD_OUT = "held-out"
_MEASURES = ("accuracy", "consistent_accuracy", "majority_accuracy", "parsed_unforced")


def curve(run: RunDir) -> dict[int, dict[str, float]]:
    """The figures of every judge that was measured, by iteration; what is not there, or is
    damaged, is left out.

    For each of `_MEASURES` and each set, `accuracy/SET`, with the ends of its interval as
    `accuracy/SET_low` and `accuracy/SET_high`. Of the iteration's work: `annotate/judgments_kept`
    for training, `annotate/samples_per_prompt`, and of all that was sampled
    `sampling/tokens_per_second` and `sampling/slots_in_use`."""
    events = read_metrics(run.root)
    return {
        each.index: _measured(each) | _annotated(each) | _sampled(each.index, events)
        for each in run.iterations()
        if each.evaluation.exists()
    }


def sets_of(figures: dict[str, float]) -> list[str]:
    """The sets that an iteration's judge was measured on."""
    names = (tag.partition("/")[2] for tag in figures if tag.startswith("accuracy/"))
    return [name for name in names if f"accuracy/{name}_low" in figures]


def _read(path: epath.Path) -> dict[str, Any]:
    """The figures of a file; none if it is damaged, since the step that made it makes it anew."""
    try:
        found: dict[str, Any] = files.read_json(path)
    except WorkError:
        return {}
    return found


def _measured(iteration: IterationDir) -> dict[str, float]:
    found: dict[str, float] = {}
    evaluation = _read(iteration.evaluation)
    for name, of_set in {HELD_OUT: evaluation, **evaluation.get("sets", {})}.items():
        for key in _MEASURES:
            if of_set.get(key) is not None:
                low, high = of_set[f"{key}_ci95"]
                tag = f"{key}/{name}"
                found |= {tag: of_set[key], f"{tag}_low": low, f"{tag}_high": high}
    return found


def _annotated(iteration: IterationDir) -> dict[str, float]:
    found: dict[str, float] = {}
    chosen = _read(iteration.curation) if iteration.curation.exists() else {}
    if chosen:
        found["annotate/judgments_kept"] = sum(chosen["kept"].values())
    prompts = iteration.prompts.count()
    if prompts:
        found["annotate/samples_per_prompt"] = iteration.judgments.count() / prompts
    return found


def _sampled(iteration: int, events: list[dict[str, Any]]) -> dict[str, float]:
    work = [
        event
        for event in events
        if (event.get("event"), event.get("iteration")) == ("work", iteration)
        and event.get("new_tokens")
    ]
    found: dict[str, float] = {}
    for name, many, of in (
        ("tokens_per_second", "new_tokens", "seconds"),
        ("slots_in_use", "busy_slot_steps", "slot_steps"),
    ):
        total = sum(event.get(of, 0) for event in work)
        if total:
            found[f"sampling/{name}"] = sum(event.get(many, 0) for event in work) / total
    return found
