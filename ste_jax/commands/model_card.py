"""What does the model card of an exported judge say?

It says where the judge came from and under which licence, how it is asked, and, if its run is still
there, from which data it learnt and what was measured of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ste_jax.commands.origin import Origin, origin_of
from ste_jax.commands.usage import usage
from ste_jax.model_io.sources import Source
from ste_jax.model_io.stored_judge_card import stored_judge_card
from ste_jax.reporting.funnel import funnel, iteration_steps, pool_steps, read_config
from ste_jax.reporting.phases import Reports, report_of
from ste_jax.reporting.tables import iteration_table, markdown
from ste_jax.run.layout import RunDir
from ste_jax.stages import judge_card
from ste_jax.system import files
from ste_jax.system.version import __version__


def model_card(name: str, source: Source, provenance: Mapping[str, Any], reports: Reports) -> str:
    """The card in Markdown.

    Args:
      name: the judge's, which is that of its directory.
      source: the model.
      provenance: its checkpoint's; of a model that is none of ours, what the user called it, as
        `source`.
      reports: of the phases of fine-tuning.
    """
    seed = str(provenance.get("source", source.name))
    origin = origin_of(seed)
    asked = stored_judge_card(source)
    lines = [
        *_front_matter(origin, bool(provenance.get("iteration")), asked is not None),
        f"# {name}",
        "",
        *_origin(source, seed, provenance, reports),
        "",
        _licence(seed, origin),
        *_usage(name, asked),
        *_of_run(source, reports),
        *_how_to_ask(asked),
    ]
    return "\n".join(lines) + "\n"


def _front_matter(origin: Origin, trained: bool, judge: bool) -> Iterator[str]:
    """What the hub reads of a card."""
    values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if origin.base_model:
        values["base_model"] = origin.base_model
        if trained:
            values["base_model_relation"] = "finetune"
    values |= origin.licence
    if judge:
        values["tags"] = ["llm-as-a-judge", "self-taught-evaluator"]
    yield from ("---", yaml.safe_dump(values, sort_keys=False, width=1000).rstrip(), "---", "")


def _licence(seed: str, origin: Origin) -> str:
    if not origin.licence:
        return (
            f"The licence of `{seed}` holds for these weights. It was not found when this card was "
            "written: look it up, and add it above, before you pass the weights on."
        )
    said = origin.licence.get("license_name") or next(iter(origin.licence.values()))
    link = origin.licence.get("license_link")
    return (
        f"The licence of `{seed}` holds for these weights: {said}"
        f"{f' ({link})' if link else ''}, as stated in {origin.stated_in}."
    )


def _usage(name: str, asked: judge_card.JudgeCard | None) -> Iterator[str]:
    if asked is None:
        return
    yield from ("", "## Use", "", "With `transformers` alone:", "")
    yield from ("```python", usage(name, asked.task).rstrip(), "```", "")
    forced = (
        " This judge was trained to be made to choose where it ends without a verdict, which they "
        "do and the lines above do not."
    ) * asked.knobs.force_verdict
    yield (
        f"With ste_jax, `ste judge {name} --instruction .. --a .. --b ..` and "
        f'`ste_jax.load_judge("{name}")` ask it in the same way, several times if you like, and an '
        f"answer that spells control tokens stays plain text there.{forced}"
    )


def _origin(
    source: Source, seed: str, provenance: Mapping[str, Any], reports: Reports
) -> Iterator[str]:
    iteration = provenance.get("iteration", 0)
    written = f"Written by `ste export` (ste_jax {__version__})."
    if not iteration:
        yield f"The model `{seed}` in the Hugging Face format, as it was read. {written}"
    else:
        validation = provenance.get("validation") or {}
        yield (
            f"A judge of pairs of answers: a Self-Taught Evaluator "
            f"([arXiv 2408.02666](https://arxiv.org/abs/2408.02666)), iteration {iteration} of the "
            f"run `{provenance['run']}`, from the seed `{seed}`. {written}"
        )
        yield ""
        learnt = report_of(reports, provenance.get("stage")).learnt
        yield (
            "No human preference labels were used: the seed answered instructions and similar "
            "ones, so that the better answer of a pair was known by construction; the judge of the "
            f"iteration before reasoned about the pairs, and {learnt.format(**provenance)}"
        )
        if validation.get("accuracy") is not None:
            yield ""
            yield (
                f"The step was chosen by its accuracy on "
                f"{validation['n_prompts'] - validation.get('n_too_long', 0):,} constructed "
                f"validation prompts: {validation['accuracy']:.3f}."
            )
        if provenance["step"] == 0:
            yield ""
            yield "No step came to as much as what this phase began with: the weights are those."


def _of_run(source: Source, reports: Reports) -> Iterator[str]:
    """The run's tables for the card, if the checkpoint is still in its run."""
    here = source.path.parent
    root = here.parent.parent
    run = RunDir(root)
    if here.parent.name != "iterations" or not here.name.isdigit() or not run.begun():
        return
    index = int(here.name)
    counts = funnel(run, reports)
    steps = pool_steps(counts)
    for each in counts["iterations"]:
        if each["iteration"] <= index:
            place = f"iteration {each['iteration']}"
            steps += [
                (f"{place}: {name}", rows, reasons)
                for name, rows, reasons in iteration_steps(each, reports)
            ]
    yield from ("", "## Data", "", "| step | rows |", "|---|---|")
    yield from (f"| {name} | {rows:,} |" for name, rows, _ in steps)
    rows = iteration_table(run, reports, counts)
    measured = _measures([row for row in rows if row["iteration"] <= index])
    if measured:
        yield from ("", "## Measured", "")
        yield _measured_on(run, index)
        yield from ("", markdown(measured))
    knobs = read_config(run)
    decisive = {key: knobs[key] for key in ("annotate", "curate", "finetune") if key in knobs}
    yield from (
        "",
        "## Knobs",
        "",
        "```yaml",
        yaml.safe_dump(decisive, sort_keys=False).rstrip(),
        "```",
    )


def _measured_on(run: RunDir, index: int) -> str:
    """What the judges up to iteration `index` were measured on, of which one at least was."""
    there = [k for k in range(index + 1) if run.iteration(k).evaluation.exists()]
    measured = files.read_json(run.iteration(there[-1]).evaluation)
    itself = "" if there[-1] == index else " This judge itself had not been measured yet."
    sets = [f"`{name}` ({each['n']:,})" for name, each in measured.get("sets", {}).items()]
    labelled = f", and on the labelled pairs {', '.join(sets)}" if sets else ""
    return (
        f"On {measured['n']:,} pairs that the run made like those it learnt from, of instructions "
        f"that no judge learnt from (their labels are constructed, and no person's){labelled}. "
        f"Each figure has its 95% interval; iteration 0 is the seed.{itself}"
    )


def _measures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a run's table that say how good each judge is."""
    names = [
        name
        for name in rows[0]
        if f"{name}_ci95" in rows[0] and any(row[name] is not None for row in rows)
    ]
    kept = [each for name in names for each in (name, f"{name}_ci95")]
    return [{"iteration": row["iteration"]} | {n: row[n] for n in kept} for row in rows if names]


def _how_to_ask(card: judge_card.JudgeCard | None) -> Iterator[str]:
    if card is None:
        return
    template = card.template
    yield from ("", "## How it is asked", "", "System:", "", "```text", template.system, "```")
    yield from ("", "User:", "", "```text", template.user, "```")
    if card.template_arguments:
        yield ""
        yield f"Arguments of the chat template: `{json.dumps(dict(card.template_arguments))}`."
    yield ""
    yield (
        f"{card.task.wording.to_ask} `{judge_card.FILE}` holds all of it; `ste judge` and "
        "`ste evaluate` read it."
    )
