"""How does a sharded stage get its model, and how is its cost logged?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ste_jax.checkpoints.card import TOKENIZER
from ste_jax.endpoints.openai import OpenAIGenerator
from ste_jax.generation import Generator, Usage
from ste_jax.pipeline.context import Context
from ste_jax.run.layout import IterationDir
from ste_jax.run.sharded import run_sharded
from ste_jax.run.sharded_work import ShardedWork
from ste_jax.system import preemption
from ste_jax.system.display import no_figures
from ste_jax.system.progress_lines import Figure
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
    figures: Callable[[], Sequence[Figure]] = no_figures
    usage = Usage()

    def ready() -> None:
        if endpoint:
            OpenAIGenerator(context.config.endpoints[endpoint], preemption.poll).close()
        else:
            context.generator(asked.checkpoint)

    def working(rows: Iterator[Any]) -> Iterator[Any]:
        nonlocal note, figures, usage
        if endpoint:
            with contextlib.closing(
                OpenAIGenerator(context.config.endpoints[endpoint], preemption.poll)
            ) as there:
                note, usage = context.meter(stage.name, iteration, there), there.usage
                figures = lambda: [_answers(there.usage, endpoint)]  # noqa: E731
                yield from work(rows, there)
            return
        generator = context.generator(asked.checkpoint)
        note, usage = context.meter(stage.name, iteration, generator), generator.usage
        before = dataclasses.replace(usage)
        figures = lambda: usage.since(before).figures()  # noqa: E731
        yield from work(rows, generator)

    run_sharded(
        dataclasses.replace(stage, ready=ready),
        working,
        context.processes,
        changes=context.changes,
        on_shard=lambda shard, rows: note(rows),
        figures=lambda: figures(),
        keep_every=context.config.run.keep_every,
        tokens_in_hand=lambda: usage.tokens_in_hand,
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


def _answers(usage: Usage, endpoint: str) -> Figure:
    return Figure("answers", usage.samples, f"{usage.samples:,} answers from {endpoint}")
