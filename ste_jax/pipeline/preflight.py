"""Can a run's model, files and endpoints be opened, and do its knobs fit?

This is checked before a run's directory is begun, and before anything in it is changed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from etils import epath

from ste_jax.checkpoints.card import is_checkpoint, read_card
from ste_jax.config import fitting
from ste_jax.config.from_plain import build, to_dict
from ste_jax.config.identity import fingerprint
from ste_jax.config.schema import Config, PoolKnobs
from ste_jax.endpoints.openai import OpenAIGenerator
from ste_jax.evaluation.readers import read_pairs
from ste_jax.finetuning.lora import check_lora
from ste_jax.model_io.open_model import look_at
from ste_jax.models.config import ModelConfig
from ste_jax.parallel.processes import Processes
from ste_jax.parallel.sharding import make_mesh
from ste_jax.pipeline.intake import is_taken_in, is_there, nothing_to_take_in
from ste_jax.pipeline.validate import FEW_PROMPTS
from ste_jax.prompts.parse import RESPONSE_MARK
from ste_jax.records import Instruction
from ste_jax.run.best import locate, locate_and_say
from ste_jax.run.layout import RunDir
from ste_jax.run.tracking import check_tracking
from ste_jax.stages import intake
from ste_jax.stages.roles import JUDGE, arguments_of, places_of, template_of
from ste_jax.system import progress, shipped
from ste_jax.system.errors import RequestError, SteError
from ste_jax.tasks import task_named
from ste_jax.tokenization.tokenizer import Tokenizer

PICO = "pico"
"""What a config calls the model in the package, and its instructions."""


def check_early(config: Config, processes: Processes) -> None:
    """Refuse, before anything is begun, what a step would otherwise refuse after hours of work.

    Raises:
      RequestError: a template that cannot be read, or processes that disagree.
    """
    check_lora(config.finetune.lora)
    check_tracking(config.track)
    _agree(config, processes)


def check_meshes(config: Config) -> None:
    """Refuse meshes that the devices do not make up.

    Raises:
      OtherDevices, RequestError: as `make_mesh`.
    """
    make_mesh(config.decoding.mesh, jax.local_devices())
    make_mesh(config.finetune.mesh)


def fit_config(
    config: Config, root: epath.Path, processes: Processes, *, new_shapes: bool = False
) -> Config:
    """The config with nothing left open (see `ste_jax.config.fitting`), the same for all processes.

    Raises:
      RequestError: the config asks for what can never fit.
    """
    plain = processes.from_first("fit", lambda: to_dict(_fitted(config, RunDir(root), new_shapes)))
    fitted: Config = build(Config, plain, str(RunDir(root).config))
    return fitted


def seed_of(config: Config, run: RunDir) -> tuple[ModelConfig, Tokenizer]:
    """The shape and the tokenizer of the seed, from its source or, if that is gone, from the run.

    Raises:
      RequestError: it is in neither.
    """
    try:
        found = locate(config.model)
    except SteError:
        if not run.begun() or not is_checkpoint(run.iteration(0).checkpoint):
            raise
        found = locate(str(run.iteration(0).checkpoint))
    return look_at(found)


def _fitted(config: Config, run: RunDir, new_shapes: bool) -> Config:
    """The config with what it leaves open worked out for its model; process 0 alone."""
    begun = run.read_manifest() if run.begun() else None
    if begun and new_shapes:
        begun = {**begun, "shapes": {}}
    shape, tokenizer = seed_of(config, run)
    task, lengths = task_named(config.judge.task), {}
    for name in fitting.ROLES:
        role = getattr(config.roles, name)
        template = template_of(name, role, task)
        empty = template.messages((), **dict.fromkeys(places_of(name, task).known, ""))
        lengths[name] = len(tokenizer.prompt_ids(empty, template.start, arguments_of(role)))
    sizes = fitting.Sizes(
        context=shape.max_position,
        templates=lengths,
        marks=len(tokenizer.encode(f"\n{RESPONSE_MARK}\n")),
        force_text=len(tokenizer.encode(config.judge.force_text)),
        labelled=0 if begun and begun["shapes"] else _longest_labelled(config, tokenizer),
    )
    return fitting.fit(config, sizes, begun)


def _longest_labelled(config: Config, tokenizer: Tokenizer) -> int:
    """The tokens of the judge's longest prompt of a labelled set, where buckets follow from it."""
    if config.decoding.prompt_buckets:
        return 0
    task, arguments = task_named(config.judge.task), arguments_of(config.roles.judge)
    template = template_of(JUDGE, config.roles.judge, task)
    prompts = (
        prompt.messages
        for knobs in config.evaluate.sets
        for pair in read_pairs(knobs.benchmark, shipped.path_of(knobs.data), knobs.by)
        for prompt in task.prompts(pair, template)[: 1 if task.answers > 1 else None]
    )
    lengths = (len(tokenizer.prompt_ids(each, template.start, arguments)) for each in prompts)
    return max(lengths, default=0)


def _templates(config: Config) -> list[Any]:
    task = task_named(config.judge.task)
    return [
        template_of(name, getattr(config.roles, name), task).fingerprint() for name in fitting.ROLES
    ]


def _agree(config: Config, processes: Processes) -> None:
    """All processes must work under the same config: their shards are one table.

    Raises:
      RequestError: they do not, or a template cannot be read.
    """
    asked = fingerprint("config", 1, to_dict(config), inputs=_templates(config))
    configs = processes.gather("config", asked)
    if len(set(configs)) > 1:
        other = next(index for index, each in enumerate(configs) if each != configs[0])
        raise RequestError(
            f"process {other} was started with another config or other templates than process 0"
        )


def check_sources(config: Config, run: RunDir) -> None:
    """Opens what the run is still to read: the model, the pool, the endpoints.

    Raises:
      RequestError, WorkError: one of them cannot be read, or holds nothing that could be used.
    """
    if not _is_imported(config, run):
        look_at(locate_and_say(config.model))
    if not is_taken_in(run, config.pool):
        _check_world(config)
        _check_pool(config.pool)
    if not run.begun():
        _say_if_few(config)
        named = {config.select.generator, config.pair.generator}
        for name in sorted({*named, *config.annotate.generator.values()} - {""}):
            OpenAIGenerator(config.endpoints[name]).close()


def _is_imported(config: Config, run: RunDir) -> bool:
    """Whether the run has a seed of that name; whether it is the same one is checked later."""
    if not run.begun() or not is_there(seed := run.iteration(0)):
        return False
    there = read_card(seed.checkpoint)["provenance"]
    return bool(there.get("source") == config.model)


def _check_world(config: Config) -> None:
    """Refuse other instructions than its own for pico, which has learnt nothing else."""
    others = [source for source in config.pool.path if source != PICO]
    if config.model == PICO and others:
        raise RequestError(
            f"pool.path names {', '.join(others)}, but pico knows the tasks of its own small world "
            "alone, and can neither answer nor judge anything else; name another model: "
            f"`ste init --data {others[0]}` writes a config for one"
        )


def _say_if_few(config: Config) -> None:
    knobs = config.select
    asked = round(2 * knobs.train * knobs.validation_fraction)
    if 0 < asked < FEW_PROMPTS:
        progress.warn(
            f"select.train={knobs.train} and select.validation_fraction="
            f"{knobs.validation_fraction:g} give about {asked} validation prompts; with fewer than "
            f"{FEW_PROMPTS} the best step is chosen almost by chance"
        )


def _check_pool(knobs: PoolKnobs) -> None:
    for source in knobs.path:
        next(intake.read_pool(dataclasses.replace(knobs, path=(source,))), None)
    set_aside: list[intake.Rejected] = []
    required = intake.Filter(knobs.require)
    for row in intake.read_pool(knobs, required):
        if isinstance(row, Instruction):
            return
        set_aside.append(row)
    raise nothing_to_take_in(knobs, required, set_aside)
