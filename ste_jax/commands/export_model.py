"""How is a judge exported for others, as a Hugging Face directory?

The directory has weights, config, tokenizer with its chat template, generation config, how the
judge is asked (`ste_judge.json`), and a model card that says where the judge came from and, if its
run is still there, what was measured of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import yaml
from safetensors import SafetensorError
from tqdm import tqdm

from ste_jax import __version__
from ste_jax.checkpoints.card import CARD, read_card
from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.hf import describe_config, save_hf
from ste_jax.model_io.load_weights import open_weights
from ste_jax.model_io.open_model import open_model
from ste_jax.model_io.sources import Source
from ste_jax.model_io.stored_judge_card import stored_judge_card
from ste_jax.models.config import ModelConfig
from ste_jax.reporting.funnel import funnel, iteration_steps, pool_steps, read_config
from ste_jax.reporting.phases import Reports, report_of
from ste_jax.reporting.tables import iteration_table, markdown
from ste_jax.run.best import locate
from ste_jax.run.layout import RunDir
from ste_jax.stages import judge_card
from ste_jax.system import files
from ste_jax.system.errors import RequestError, WorkError


def export_model(source: str, directory: str, reports: Reports, dtype: str | None = None) -> str:
    """Write the model `source` as a Hugging Face directory; returns what to print.

    Args:
      dtype: what the weights are written in; None: as the checkpoint has them, and bfloat16 for a
        model that is no checkpoint of ours.

    Raises:
      RequestError: the source cannot be read, has no Hugging Face form, or the place is taken, if
        only by another export at work.
      WorkError: it cannot be written; nothing half-written is left.
    """
    final = Path(directory)
    if final.exists():
        raise RequestError(f"{directory} is there already; name another place")
    found = locate(source)
    card = read_card(found.path) if found.kind == "checkpoint" else None
    # Checked before minutes of reading.
    asked = stored_judge_card(found)
    where = str(found.path / CARD)
    shape = ModelConfig.from_dict(card["model"], where) if card else open_weights(found).config
    describe_config(shape)
    if dtype is None:
        dtype = card["parameters"]["embed"]["dtype"] if card else "bfloat16"
    opened = open_model(found, MeshKnobs(), dtype=dtype, param_dtype=dtype)
    building = final.with_name(f"{final.name}.partial-export")
    with files.held(building):
        for left in building.iterdir():  # of an export that was killed
            files.remove(left)
        try:
            count = opened.model.config.parameter_count()
            bar = tqdm(
                total=count * jnp.dtype(dtype).itemsize, unit="B", unit_scale=True, desc="export"
            )
            with bar:
                ids = opened.tokenizer.special_token_ids()
                save_hf(opened.model, building, special_token_ids=ids, progress=bar.update)
            opened.tokenizer.save(building)
            if asked is not None:
                card_text = json.dumps(judge_card.to_dict(asked), indent=2, ensure_ascii=False)
                (building / judge_card.FILE).write_text(card_text + "\n", encoding="utf-8")
            text = model_card(final.name, found, card["provenance"] if card else {}, reports)
            (building / "README.md").write_text(text, encoding="utf-8")
            building.rename(final)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise WorkError(
                f"could not write {directory}: {reason}; make room and run again"
            ) from error
        finally:
            files.remove(building)
    return f"{directory}: {count:,} parameters in {dtype}, from {found.name}"


def model_card(name: str, source: Source, provenance: Mapping[str, Any], reports: Reports) -> str:
    """The card in Markdown: seed, recipe, data, measured accuracies, how to ask it."""
    lines = [
        "---",
        "library_name: transformers",
        "tags: [llm-as-a-judge, self-taught-evaluator]",
        "---",
        "",
        f"# {name}",
        "",
        *_origin(source, provenance, reports),
        *_of_run(source, reports),
        *_how_to_ask(stored_judge_card(source)),
    ]
    return "\n".join(lines) + "\n"


def _origin(source: Source, provenance: Mapping[str, Any], reports: Reports) -> Iterator[str]:
    seed = provenance.get("source", source.name)
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
    yield ""
    yield f"The licence of `{seed}` holds for these weights."


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
            steps += iteration_steps(each, reports)
    yield from ("", "## Data", "", "| step | rows |", "|---|---|")
    yield from (f"| {name} | {rows:,} |" for name, rows, _ in steps)
    rows = iteration_table(run, reports, counts)
    measured = _measures([row for row in rows if row["iteration"] <= index])
    if measured:
        yield from ("", "## Measured", "")
        yield "Accuracies with their 95% intervals; iteration 0 is the seed."
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
