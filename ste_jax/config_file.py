"""How is a config read, and which knobs contradict each other?

YAML of the shape of `ste_jax.config.Config`, plus `key.sub=value` overrides. A key that does not
exist, a value of the wrong type or knobs that exclude each other are a `RequestError` that names
the file, the key and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ste_jax import strict
from ste_jax.config import Config, DpoKnobs, FinetuneKnobs
from ste_jax.errors import RequestError


def load_config(source: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply `key.sub=value` overrides.

    `source` is a path, or the name of a shipped config (`smollm2-135m`).

    Raises:
      RequestError: no such file, not YAML, an unknown key, a wrong type, or knobs that contradict
        each other; the message names the file, the key and what was expected.
    """
    path = _find(source)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"config {path} cannot be read as YAML: {reason}") from error
    if not isinstance(values, dict):
        raise RequestError(f"config {path} must be a mapping of keys to values")
    for override in overrides:
        _apply(values, override)
    config: Config = strict.build(Config, values, where=str(path))
    check(config)
    return config


def _find(source: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    here = Path(__file__).parent
    for folder in (here / "configs", here.parent / "configs"):
        shipped = folder / f"{source}.yaml"
        if shipped.is_file():
            return shipped
    raise RequestError(f"config {source} is neither a file nor the name of a shipped config")


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError(f"override {override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"the value of override {override!r} is not YAML") from error
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
    positive = {
        "iterations": config.iterations,
        "pool.shards": config.pool.shards,
        "annotate.samples": config.annotate.samples,
        "evaluate.votes": config.evaluate.votes,
        "evaluate.bootstrap": config.evaluate.bootstrap,
        "finetune.batch_rows": config.finetune.batch_rows,
        "finetune.accumulate": config.finetune.accumulate,
        "finetune.validate_every": config.finetune.validate_every,
        "finetune.save_every": config.finetune.save_every,
        "finetune.keep_states": config.finetune.keep_states,
        "finetune.dpo.batch_rows": config.finetune.dpo.batch_rows,
        "finetune.dpo.accumulate": config.finetune.dpo.accumulate,
        "finetune.dpo.validate_every": config.finetune.dpo.validate_every,
        "finetune.dpo.pairs_per_prompt": config.finetune.dpo.pairs_per_prompt,
        "decoding.groups": config.decoding.groups,
        "decoding.group_size": config.decoding.group_size,
        "decoding.prefill_chunk": config.decoding.prefill_chunk,
        "decoding.steps_per_round": config.decoding.steps_per_round,
        "select.train": config.select.train,
        "select.heldout": config.select.heldout,
    }
    for key, value in positive.items():
        if value < 1:
            raise RequestError(f"{key} must be at least 1, not {value}")
    longest = max(config.decoding.new_buckets, default=0)
    for name in ("classify", "respond", "modify", "judge"):
        sampling = getattr(config.roles, name).sampling
        for key, good, wanted in (
            ("temperature", sampling.temperature >= 0, "at least 0"),
            ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
            ("top_k", sampling.top_k >= 0, "at least 0 (0 switches it off)"),
            ("min_p", 0 <= sampling.min_p <= 1, "at least 0 and at most 1 (0 switches it off)"),
        ):
            if not good:
                raise RequestError(
                    f"roles.{name}.sampling.{key} must be {wanted}, not {getattr(sampling, key)}"
                )
        tokens = sampling.max_new_tokens
        if not 1 <= tokens <= longest:
            raise RequestError(
                f"roles.{name}.sampling.max_new_tokens={tokens} must lie between 1 and the largest "
                f"of decoding.new_buckets, {longest}"
            )
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
    for bucket in config.decoding.prompt_buckets:
        if bucket % config.decoding.prefill_chunk:
            raise RequestError(
                f"decoding.prompt_buckets holds {bucket}, not a multiple of "
                f"decoding.prefill_chunk={config.decoding.prefill_chunk}"
            )
    if config.curate.limit < 0 or config.curate.limit == 1:
        raise RequestError(f"curate.limit must be 0 (all) or at least 2, not {config.curate.limit}")
    if config.curate.verdicts == "any" and config.curate.min_agreement > 0:
        raise RequestError(
            "curate.min_agreement counts correct verdicts, which curate.verdicts=any does not ask "
            "for; set one of them back"
        )
    if not 0 <= config.curate.min_agreement <= 1:
        raise RequestError("curate.min_agreement must be at least 0 and at most 1")
    if config.pool.limit < 0:
        raise RequestError("pool.limit must be at least 0 (0: no limit)")
    if not config.annotate.waves or min(config.annotate.waves) < 1:
        raise RequestError("annotate.waves must list at least one positive size")
    if config.curate.min_agreement > 0 and config.annotate.policy != "all":
        raise RequestError(
            "curate.min_agreement needs every sample; set annotate.policy=all or min_agreement=0"
        )
    _check_finetune(config)
    if not 0 <= config.select.validation_fraction < 1:
        raise RequestError("select.validation_fraction must be at least 0 and below 1")
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
        if each.epochs <= 0 or each.max_steps < 0:
            raise RequestError(f"{name}.epochs must be above 0 and {name}.max_steps at least 0")
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
    if knobs.dpo.beta <= 0 or knobs.dpo.nll_scale < 0:
        raise RequestError(
            "finetune.dpo.beta must be above 0 and finetune.dpo.nll_scale at least 0"
        )
    if not knobs.dpo.negatives:
        raise RequestError("finetune.dpo.negatives must name at least one kind of failed judgment")
    if knobs.dpo.more_samples < 0:
        raise RequestError("finetune.dpo.more_samples must be at least 0")
    usual = config.roles.judge.sampling.temperature
    if knobs.dpo.more_samples and knobs.dpo.more_temperature <= usual:
        raise RequestError(
            f"finetune.dpo.more_temperature={knobs.dpo.more_temperature} is not above the usual "
            f"roles.judge.sampling.temperature={usual}; raise it"
        )
    if config.annotate.policy != "all":
        raise RequestError(
            "finetune.stages has dpo, which needs correct and failed judgments of the same prompt; "
            "set annotate.policy=all, or leave dpo out"
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
        if not endpoint.url.startswith(("http://", "https://")):
            raise RequestError(f"endpoints.{name}.url is {endpoint.url!r}, not http(s)://...")
        if endpoint.concurrency < 1 or endpoint.retries < 0 or not endpoint.timeout > 0:
            raise RequestError(
                f"endpoints.{name}: concurrency is at least 1, retries at least 0, and timeout "
                "above 0"
            )
