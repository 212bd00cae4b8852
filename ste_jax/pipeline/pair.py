"""How do the kept instructions become pairs?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ste_jax.checkpoints.card import TOKENIZER
from ste_jax.config import identity
from ste_jax.config.identity import fingerprint
from ste_jax.generation import Generator
from ste_jax.pipeline.context import SEED_STEP, Context, named_decoding, named_role
from ste_jax.pipeline.intake import answers_of
from ste_jax.pipeline.with_model import ask, chat_template_of
from ste_jax.records import Instruction, Pair
from ste_jax.run.changes import RecipeStep
from ste_jax.run.layout import RunDir
from ste_jax.run.sharded_work import ShardedWork, Words
from ste_jax.stages import pair as pairing
from ste_jax.stages.roles import make_role, role_fingerprint
from ste_jax.system.errors import WorkError
from ste_jax.tokenization.load import load_tokenizer


def make_pairs(context: Context) -> None:
    """Make two answers per kept instruction, of which one is known to be better."""
    run, config, seed = context.run, context.config, context.run.iteration(0)
    knobs = identity.of(config.pair, without=("generator",))  # the model is another part of it
    elsewhere = config.pair.generator
    chat = chat_template_of(seed, elsewhere)
    respond, modify = (
        make_role(name, getattr(config.roles, name), seed=config.seed, chat_template=chat)
        for name in ("respond", "modify")
    )
    asked = [knobs, role_fingerprint(respond), role_fingerprint(modify)]
    model = answers_of(context, seed, elsewhere)
    named = {
        **identity.named("pair", config.pair),
        **named_role(config, "respond"),
        **named_role(config, "modify"),
        **named_decoding(config, elsewhere),
    }
    stage = ShardedWork(
        name="pair",
        made_under=fingerprint("pair", pairing.VERSION, asked, model=model, named=named),
        words=Words(
            step=RecipeStep(
                title="pair",
                takes=("intake", "select"),
                asks="" if elsewhere else SEED_STEP,
                model="the seed",
            ),
            rows="instructions",
            verb="get a pair of answers",
            gone="are no longer selected",
        ),
        home=run.root / "pairs",
        inputs=run.selected.read,
        outputs=(run.dropped_pairs, run.pairs),
        input_of=lambda table, row: row.id if table == 0 else row.instruction_id,
    )

    def work(rows: Iterator[Instruction], generator: Generator) -> Iterator[Any]:
        counting = load_tokenizer(str(seed.checkpoint / TOKENIZER))
        for row, found in pairing.pair(
            rows,
            generator,
            respond,
            modify,
            config.pair,
            count_tokens=lambda text: len(counting.encode(text)),
        ):
            yield row, (([], [found]) if isinstance(found, Pair) else ([found], []))

    ask(context, stage, 0, seed, work, elsewhere)
    if not context.changes.dry:
        context.processes.from_first("check pairs", lambda: _check_pairs(run))


def _check_pairs(run: RunDir) -> None:
    reasons = Counter(row.reason for row in run.dropped_pairs.rows())
    if not any(True for _ in run.pairs.rows()):
        raise WorkError(f"pair: no pair came out of {sum(reasons.values())}: {dict(reasons)}")
