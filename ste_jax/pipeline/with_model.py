"""How does a sharded stage get its model, and how is its cost logged?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from ste_jax.checkpoints.card import TOKENIZER
from ste_jax.endpoints.openai import OpenAIGenerator
from ste_jax.generation import Generator, Usage
from ste_jax.pipeline.context import Context
from ste_jax.run.layout import IterationDir
from ste_jax.run.sharded import run_sharded
from ste_jax.run.sharded_work import ShardedWork
from ste_jax.system import preemption
from ste_jax.tokenization.load import CHAT_TEMPLATE, load_tokenizer


def ask(
    context: Context,
    stage: ShardedWork,
    iteration: int,
    asked: IterationDir,
    work: Callable[[Iterator[Any], Generator], Iterator[Any]],
    endpoint: str = "",
) -> None:
    """Run a sharded stage that asks a model, and log what each shard cost.

    The model is that of `asked`, or the one behind an `endpoint`. `work` takes rows and
    the generator.
    """
    note: Callable[[int], None] = lambda rows: None  # noqa: E731 - until there is work
    status: Callable[[], str] = lambda: ""  # noqa: E731

    def ready() -> None:
        if endpoint:
            OpenAIGenerator(context.config.endpoints[endpoint], preemption.poll).close()
        else:
            context.generator(asked.checkpoint)

    def working(rows: Iterator[Any]) -> Iterator[Any]:
        nonlocal note, status
        if endpoint:
            with contextlib.closing(
                OpenAIGenerator(context.config.endpoints[endpoint], preemption.poll)
            ) as there:
                note = context.meter(stage.name, iteration, there)
                status = lambda: f"{there.usage.samples} answers from {endpoint}"  # noqa: E731
                yield from work(rows, there)
            return
        generator = context.generator(asked.checkpoint)
        note = context.meter(stage.name, iteration, generator)
        status = lambda: _pace(generator.usage)  # noqa: E731
        yield from work(rows, generator)

    run_sharded(
        dataclasses.replace(stage, ready=ready),
        working,
        context.processes,
        changes=context.changes,
        on_shard=lambda shard, rows: note(rows),
        status=lambda: status(),
    )


def chat_template_of(asked: IterationDir, endpoint: str = "") -> str | None:
    """The chat template of an iteration's judge; None for an endpoint, whose template is not
    known."""
    if endpoint:
        return None
    directory = asked.checkpoint / TOKENIZER
    if (directory / CHAT_TEMPLATE).exists():  # without reading the rest
        return str((directory / CHAT_TEMPLATE).read_text(encoding="utf-8"))
    return load_tokenizer(directory).chat_template


def _pace(usage: Usage) -> str:
    """How fast the engine is, for the progress bar."""
    return (
        f"{usage.tokens_per_second:.0f} tokens/s, slots {usage.slot_occupancy:.0%} in use, "
        f"prefill {usage.prefill_share:.0%} of the time"
    )
