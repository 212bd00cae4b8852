"""How is a config read, and which knobs contradict each other?

YAML of the shape of `config.schema.Config`, plus `key.sub=value` overrides. A key that does not
exist, a value of the wrong type, a number out of its range or knobs that exclude each other are a
`RequestError` that names the file, the key and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ste_jax.config import from_plain
from ste_jax.config.endpoint_check import check_endpoint
from ste_jax.config.schema import Config, DpoKnobs, FinetuneKnobs
from ste_jax.config.shape_check import check_knobs
from ste_jax.config.template_arguments import check_arguments
from ste_jax.errors import RequestError
from ste_jax.system import notation


def load_config(source: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply `key.sub=value` overrides.

    `source` is a path, or the name of a shipped config (`smollm2-135m`).

    Raises:
      RequestError: no such file, not YAML, an unknown key, a wrong type, or knobs that contradict
        each other; the message names the file, the key and what was expected.
    """
    path = _find(source)
    try:
        values = notation.from_yaml(notation.as_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise RequestError(f"config {path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise RequestError(f"config {path} must be a mapping of keys to values")
    for override in overrides:
        _apply(values, override)
    config: Config = from_plain.build(Config, values, where=str(path))
    check(config)
    return config


def _find(source: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        shipped = folder / f"{source}.yaml"
        if shipped.is_file():
            return shipped
    raise RequestError(f"config {source} is neither a file nor the name of a shipped config")


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError(f"override {override!r} is not of the form key=value")
    try:
        value = notation.from_yaml(text)
    except ValueError as error:
        raise RequestError(f"the value of override {override!r} is not YAML: {error}") from error
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RequestError(f"override {override!r}: {parent} is a value, not a group of keys")
    values[last] = value


def check(config: Config) -> None:
    """Refuse knobs that contradict each other.

    Raises:
      RequestError: names the keys and says which to change.
    """
    check_knobs(config.decoding, fitted=False)
    for name in ("classify", "respond", "modify", "judge"):
        arguments = getattr(config.roles, name).template_arguments
        check_arguments(arguments, f"roles.{name}.template_arguments")
    fixed = config.roles.judge.sampling.temperature == 0
    why = "roles.judge.sampling.temperature=0" if fixed else "evaluate.greedy=true"
    for key, value, same in (
        ("annotate.samples", config.annotate.samples, fixed),
        ("evaluate.votes", config.evaluate.votes, fixed or config.evaluate.greedy),
    ):
        if same and value > 1:
            raise RequestError(
                f"{key}={value} at {why} would be one and the same text {value} times; "
                f"change that or set {key}=1"
            )
    _check_generators(config)
    if config.curate.limit == 1:
        raise RequestError(f"curate.limit must be 0 (all) or at least 2, not {config.curate.limit}")
    if config.curate.verdicts == "any" and config.curate.min_agreement > 0:
        raise RequestError(
            "curate.min_agreement counts correct verdicts, which curate.verdicts=any does not ask "
            "for; set one of them back"
        )
    if not config.annotate.waves:
        raise RequestError("annotate.waves must list at least one size")
    if config.curate.min_agreement > 0 and config.annotate.policy != "all":
        raise RequestError(
            "curate.min_agreement needs every sample; set annotate.policy=all or min_agreement=0"
        )
    _check_finetune(config)
    names = [each.name for each in config.evaluate.sets]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or names.count(name) > 1:
            raise RequestError(
                f"evaluate.sets: the name {name!r} must be letters, digits, - and _, and stand once"
            )
    for name in ("keep_categories", "drop_categories"):
        for category in getattr(config.select, name):
            if category not in config.select.categories:
                raise RequestError(f"select.{name} holds {category}, not one of select.categories")


def _check_finetune(config: Config) -> None:
    knobs = config.finetune
    if not knobs.stages or len(set(knobs.stages)) < len(knobs.stages):
        raise RequestError("finetune.stages must name at least one stage, and each once")
    groups: list[tuple[str, FinetuneKnobs | DpoKnobs]] = [("finetune", knobs)]
    if "dpo" in knobs.stages:
        groups.append(("finetune.dpo", knobs.dpo))
    for name, each in groups:
        if each.batch_rows % each.accumulate:
            raise RequestError(f"{name}.accumulate must divide {name}.batch_rows")
        if each.schedule_steps and each.schedule_steps <= each.warmup_steps:
            raise RequestError(
                f"{name}.schedule_steps={each.schedule_steps} must be 0 (the steps that are taken) "
                f"or above {name}.warmup_steps={each.warmup_steps}"
            )
    if knobs.moments_dtype == "bfloat16" and knobs.beta2 > 0.99:
        raise RequestError(
            f"finetune.beta2={knobs.beta2} changes the second moment by less than bfloat16 can "
            "tell; lower it to 0.99 or less, or set finetune.moments_dtype=float32"
        )
    if knobs.lora.rank and knobs.handover == "restore":
        raise RequestError(
            "finetune.handover=restore puts the training state aside, of which there is little "
            "with finetune.lora; set it to auto"
        )
    if "dpo" not in knobs.stages:
        return
    if not knobs.dpo.negatives:
        raise RequestError("finetune.dpo.negatives must name at least one kind of failed judgment")
    usual = config.roles.judge.sampling.temperature
    if knobs.dpo.more_samples and knobs.dpo.more_temperature <= usual:
        raise RequestError(
            f"finetune.dpo.more_temperature={knobs.dpo.more_temperature} is not above the usual "
            f"roles.judge.sampling.temperature={usual}; raise it"
        )
    if knobs.dpo.judgments == "sft" and "sft" not in knobs.stages[: knobs.stages.index("dpo")]:
        raise RequestError(
            "finetune.dpo.judgments=sft asks the judge that SFT gave; put sft before dpo in "
            "finetune.stages, or set finetune.dpo.judgments=annotate"
        )
    if knobs.dpo.judgments == "annotate" and config.annotate.policy != "all":
        raise RequestError(
            "finetune.dpo.judgments=annotate pairs correct and failed judgments of the same "
            "prompt; set annotate.policy=all, or finetune.dpo.judgments=sft"
        )
    if config.annotate.samples < 2:
        raise RequestError(
            "finetune.stages has dpo, which needs two judgments of a prompt; raise annotate.samples"
        )


def _check_generators(config: Config) -> None:
    named = {"select.generator": config.select.generator, "pair.generator": config.pair.generator}
    for iteration, name in config.annotate.generator.items():
        if (
            not re.fullmatch("[1-9][0-9]*", iteration)
            or not 1 <= int(iteration) <= config.iterations
        ):
            raise RequestError(
                f"annotate.generator names the iteration {iteration!r}, not one from 1 to "
                f"iterations={config.iterations}"
            )
        named[f"annotate.generator.{iteration}"] = name
    for key, name in named.items():
        if name and name not in config.endpoints:
            known = ", ".join(config.endpoints) or "none"
            raise RequestError(f"{key} is {name!r}, which is none of endpoints ({known})")
    if config.select.generator and config.select.labels == "score":
        raise RequestError(
            "select.labels=score needs log-probabilities of given texts, which no endpoint tells; "
            "set it to generate, or leave select.generator empty"
        )
    for name, endpoint in config.endpoints.items():
        check_endpoint(endpoint, name)
