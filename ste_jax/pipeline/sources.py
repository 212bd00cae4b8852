"""Can all that a run reads be opened?

Asked before a run's directory is begun, and before anything in it is changed.
"""

from __future__ import annotations

import dataclasses

from ste_jax.checkpoints import checkpoint
from ste_jax.config.schema import Config, PoolKnobs
from ste_jax.endpoints.openai import OpenAIGenerator
from ste_jax.model_io.open_model import look_at
from ste_jax.pipeline.intake import is_taken_in, is_there, nothing_to_take_in
from ste_jax.records import Instruction
from ste_jax.run.best import locate
from ste_jax.run.layout import RunDir
from ste_jax.stages import intake


def check_sources(config: Config, run: RunDir) -> None:
    """Opens what is still to be read: the model, the pool, the endpoints.

    Raises:
      RequestError, WorkError: one of them cannot be read, or holds nothing that could be used.
    """
    if not _is_imported(config, run):
        look_at(locate(config.model))
    if not is_taken_in(run, config.pool):
        _check_pool(config.pool)
    if not run.begun():
        named = {config.select.generator, config.pair.generator}
        for name in sorted({*named, *config.annotate.generator.values()} - {""}):
            OpenAIGenerator(config.endpoints[name]).close()


def _is_imported(config: Config, run: RunDir) -> bool:
    """Whether the run holds a seed of that name; whether it is the same is asked later."""
    if not run.begun() or not is_there(seed := run.iteration(0)):
        return False
    there = checkpoint.read_card(seed.checkpoint)["provenance"]
    return bool(there.get("source") == config.model)


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
