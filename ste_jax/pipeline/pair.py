"""How do the kept instructions become pairs?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ste_jax.checkpoints.checkpoint import TOKENIZER
from ste_jax.config.from_plain import to_dict
from ste_jax.errors import WorkError
from ste_jax.generation import Generator
from ste_jax.pipeline.context import Context
from ste_jax.pipeline.intake import answers_of
from ste_jax.pipeline.with_model import ask, chat_template_of
from ste_jax.records import Instruction, Pair
from ste_jax.run.layout import RunDir, fingerprint
from ste_jax.run.sharded import ShardedStage
from ste_jax.stages import pair as pairing
from ste_jax.stages.roles import make_role, role_fingerprint
from ste_jax.system import preemption
from ste_jax.tokenization.tokenizer import load_tokenizer


def make_pairs(context: Context) -> None:
    """Two answers per kept instruction, of which one is known to be better."""
    run, config, seed = context.run, context.config, context.run.iteration(0)
    knobs, elsewhere = to_dict(config.pair), config.pair.generator
    chat = chat_template_of(seed, elsewhere)
    respond, modify = (
        make_role(name, getattr(config.roles, name), seed=config.seed, chat_template=chat)
        for name in ("respond", "modify")
    )
    del knobs["generator"]  # whose answers they are is told apart
    asked = [knobs, role_fingerprint(respond), role_fingerprint(modify)]
    model = answers_of(context, seed, elsewhere)
    stage = ShardedStage(
        name="pair",
        print_=fingerprint("pair", pairing.VERSION, asked, model=model),
        home=run.root / "pairs",
        inputs=run.selected.read,
        outputs=(run.dropped_pairs, run.pairs),
        input_of=lambda table, row: row.id if table == 0 else row.instruction_id,
    )

    def work(rows: Iterator[Instruction], generator: Generator, in_flight: int) -> Iterator[Any]:
        counting = load_tokenizer(str(seed.checkpoint / TOKENIZER))
        for row, found in pairing.pair(
            rows,
            generator,
            respond,
            modify,
            config.pair,
            in_flight=in_flight,
            count_tokens=lambda text: len(counting.encode(text)),
            poll=preemption.poll,
        ):
            yield row, (([], [found]) if isinstance(found, Pair) else ([found], []))

    ask(context, stage, 0, seed, work, elsewhere)
    context.processes.from_first("check pairs", lambda: _check_pairs(run))


def _check_pairs(run: RunDir) -> None:
    reasons = Counter(row.reason for row in run.dropped_pairs.rows())
    if not any(True for _ in run.pairs.rows()):
        raise WorkError(f"pair: no pair came out of {sum(reasons.values())}: {dict(reasons)}")
