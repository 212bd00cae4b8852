"""What do waves and early stopping save, and how full do they keep the slots?

The recipe's own work: the annotate stage judges 512 pairs in both orders, with up to 16 samples
each, in the waves of the recipe, and stops at the first correct verdict. The engine is real and
runs a model of pico's size; what the judgments say is scripted: each prompt has a chance of a
correct verdict between 0.1 and 0.9, and each sample a length, both by hash. So the same script can
be drawn in full, and what is kept of both compared.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.claims import claim_line
from benchmarks.decoding.work import NoText
from ste_jax.config.schema import AnnotateKnobs, DecodingKnobs, JudgeKnobs
from ste_jax.decoding.engine import Engine
from ste_jax.decoding.rows import Prompt as Tokens
from ste_jax.generation import Completion, Request, Sampling
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.records import Judgment, Prompt, hash_order
from ste_jax.stages.annotate import annotate
from ste_jax.stages.judge import Judge
from ste_jax.stages.roles import Role
from ste_jax.system import compilation_cache, progress
from ste_jax.tasks import PAIRWISE, Question

PAIRS, SAMPLES, WAVES, SLOTS = 512, 16, (2, 2, 4, 8), 64
LONGEST = 128
OCCUPANCY, OF_ALL = 0.85, 0.6
"""What is claimed: of the slots' steps, at the least, until the queue first runs empty; and of the
time of drawing all samples at once, at the most."""
SHAPE = ModelConfig(
    vocab_size=512,
    hidden_size=192,
    intermediate_size=512,
    num_layers=4,
    num_heads=6,
    num_kv_heads=3,
    head_dim=32,
    max_position=1024,
    tie_embeddings=True,
)
"""About pico's."""


def chance(*names: object) -> float:
    """A number from 0 up to 1, by hash."""
    return hash_order("/".join(map(str, names)), "script") / 2**64


class Scripted:
    """What the stage asks of a generator: an engine draws tokens, a script says how many and what
    they mean."""

    def __init__(self, engine: Engine, labels: dict[str, str]) -> None:
        self._engine, self._labels = engine, labels
        self.usage = engine.usage
        self.in_flight = 2 * SLOTS
        self.full: tuple[int, int] | None = None
        """Busy and all slot steps when the queue first ran empty."""

    def submit(self, request: Request) -> None:
        """Each sample with its own length."""
        length = 128 + int(256 * chance(request.id, "prompt"))
        draw = np.random.default_rng(int(2**32 * chance(request.id, "tokens")))
        tokens = Tokens(tuple(draw.integers(0, SHAPE.vocab_size, length).tolist()))
        for sample in request.samples:
            self._engine.submit(
                dataclasses.replace(
                    request,
                    samples=(sample,),
                    sampling=dataclasses.replace(
                        request.sampling, max_new_tokens=self.length(request.id, sample)
                    ),
                ),
                tokens,
            )

    def length(self, id: str, sample: int) -> int:
        """Log-normal, of median 48: judgments are of very different lengths."""
        uniform = [max(chance(id, sample, "length", which), 1e-9) for which in (0, 1)]
        normal = math.sqrt(-2 * math.log(uniform[0])) * math.cos(2 * math.pi * uniform[1])
        return min(LONGEST, max(8, round(48 * math.exp(0.5 * normal))))

    def correct(self, id: str, sample: int) -> bool:
        """Whether this sample's verdict is right."""
        return chance(id, sample, "verdict") < 0.1 + 0.8 * chance(id, "skill")

    def completions(self) -> Iterator[Completion]:
        """The engine's, with the script's text."""
        for one in self._engine.completions():
            usage = self.usage
            if self.full is None and usage.slot_steps and not self._engine.waiting:
                self.full = usage.busy_slot_steps, usage.slot_steps
            label = self._labels[one.request_id]
            if not self.correct(one.request_id, one.sample):
                label = {"A": "B", "B": "A"}[label]
            yield dataclasses.replace(one, text=f"[[{label}]]", finish_reason="stop")

    def release(self, id: str) -> None:
        """As it is."""
        self._engine.release(id)


def prompts(pairs: int) -> list[Prompt]:
    """Both orders of each pair."""
    return [
        Prompt(
            id=f"{pair}-{order}",
            pair_id=str(pair),
            order=order,
            messages=[{"role": "user", "content": ""}],
            label="A" if order == "ab" else "B",
        )
        for pair in range(pairs)
        for order in ("ab", "ba")
    ]


def run(
    model: Decoder, knobs: AnnotateKnobs, pairs: int, title: str
) -> tuple[dict[str, Judgment | None], dict[str, Any]]:
    """What is kept of each prompt, and what it took."""
    engine = Engine(
        model,
        NoText(()),
        DecodingKnobs(
            prompt_buckets=(384,),
            new_buckets=(LONGEST,),
            groups=SLOTS,  # a group waits for its longest sample
            group_size=1,
            prefill_chunk=128,
            steps_per_round=8,
            cache_tokens=2 * SLOTS * 384,
            dtype="float32",
        ),
    )
    asked = prompts(pairs)
    warm = [dataclasses.replace(prompt, id=f"warm-{prompt.id}") for prompt in asked[:8]]
    generator = Scripted(engine, {prompt.id: prompt.label for prompt in [*warm, *asked]})
    role = Role(
        name="judge",
        template=PAIRWISE.load_template("judge"),
        sampling=Sampling(max_new_tokens=LONGEST, temperature=0.7, top_p=0.9, ignore_eos=True),
        key=0,
    )
    judge = Judge(role=role, knobs=JudgeKnobs(force_verdict=False), model="scripted", iteration=1)

    def work(asked: list[Prompt]) -> Iterator[tuple[Question, list[Judgment]]]:
        return annotate(PAIRWISE.questions(asked), generator, judge, knobs)

    list(work(warm))
    busy, steps = generator.usage.busy_slot_steps, generator.usage.slot_steps
    generator.full = None
    kept: dict[str, Judgment | None] = {}
    drawn = 0
    began = time.perf_counter()
    with progress.work(title, len(asked), "prompts") as shown:
        for question, judgments in work(asked):
            (prompt,) = question.prompts
            right = [one for one in judgments if one.verdict == prompt.label]
            kept[prompt.id] = min(right, key=lambda one: one.sample, default=None)
            drawn += len(judgments)
            shown.add()
    seconds = time.perf_counter() - began
    assert generator.full is not None
    usage = generator.usage
    return kept, {
        "seconds": seconds,
        "samples": drawn,
        "occupancy until the queue first ran empty": (generator.full[0] - busy)
        / (generator.full[1] - steps),
        "occupancy": (usage.busy_slot_steps - busy) / (usage.slot_steps - steps),
    }


def measure(pairs: int = PAIRS) -> tuple[dict[str, Any], bool]:
    """The recipe's way against all samples at once; whether the claims hold."""
    compilation_cache.enable()
    model = Decoder(SHAPE, rngs=nnx.Rngs(0), param_dtype=jnp.float32)
    stop = AnnotateKnobs(samples=SAMPLES, waves=WAVES, policy="first_correct")
    every = AnnotateKnobs(samples=SAMPLES, waves=(SAMPLES,), policy="all")
    found: dict[str, Any] = {"workload": "C"}
    kept, found["first correct"] = run(model, stop, pairs, "first correct")
    of_all, found["all at once"] = run(model, every, pairs, "all at once")
    same = all(
        (one and (one.sample, one.token_ids))
        == (of_all[id] and (of_all[id].sample, of_all[id].token_ids))
        for id, one in kept.items()
    )
    found["time, of all at once"] = (
        found["first correct"]["seconds"] / found["all at once"]["seconds"]
    )
    found["same judgments kept"] = same
    occupancy = found["first correct"]["occupancy until the queue first ran empty"]
    claimed = {
        f"occupancy until the queue first ran empty {occupancy:.3f}, at least {OCCUPANCY}":
            occupancy >= OCCUPANCY,
        f"time {found['time, of all at once']:.3f} of drawing all at once, at most {OF_ALL}":
            found["time, of all at once"] <= OF_ALL,
        "the same judgments are kept": same,
    }  # fmt: skip
    for claim, holds in claimed.items():
        print(f"- {claim_line(claim, holds)}")
    return found, all(claimed.values())
