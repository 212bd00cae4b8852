"""Ask many requests of a tiny model and say what the process holds in between.

`python -m tests.decoding.growth DIRECTORY MARK ...`: a line of JSON after each MARK of so many
requests, with the bytes in memory and the length of everything that the generator keeps.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding import generator as local
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.generation import Request, Sampling
from ste_jax.model_io.load_weights import load_weights
from ste_jax.parallel.sharding import make_mesh
from ste_jax.tokenization.load import load_tokenizer
from tests import tiny

KNOBS = DecodingKnobs(
    prompt_buckets=(128,),
    new_buckets=(8,),
    groups=16,
    group_size=2,
    prefill_chunk=32,
    steps_per_round=8,
    cache_tokens=2048,
    dtype="float32",
)
KNOWN_TOKENS = 10_000
"""The bound of the generator's memory of prompts, such that it is reached soon."""
OPEN = 50


def open_generator(directory: Path) -> LocalGenerator:
    mesh = make_mesh(MeshKnobs(), jax.devices()[:1])
    return LocalGenerator(load_weights(directory, mesh), load_tokenizer(directory), KNOBS, mesh)


def ask(generator: LocalGenerator, marks: list[int]) -> Iterator[int]:
    """Asks for two waves of samples of one prompt after the other; yields at every mark.

    Half of the prompts are released.
    """
    draw = random.Random(0)
    sampling = Sampling(max_new_tokens=8, temperature=1.0, stop=(" zebra amber",))
    for start in range(0, marks[-1], OPEN):
        texts = [" ".join(draw.choices(tiny.WORDS, k=99)) for _ in range(OPEN)]
        chats: Any = {
            f"{start + i}": [{"role": "user", "content": f" {text}"}]
            for i, text in enumerate(texts)
        }
        for samples in ((0, 1), (2,)):
            for id, messages in chats.items():
                generator.submit(
                    Request(
                        id=id,
                        messages=messages,
                        sampling=sampling,
                        samples=samples,
                        alone=len(samples) == 1,
                    )
                )
            for completion in generator.completions():
                assert not completion.error
        for id in list(chats)[::2]:
            generator.release(id)
        if start + OPEN in marks:
            yield start + OPEN


def lengths(thing: Any, path: str = "") -> Counter[str]:
    """How much the containers that a thing of this package holds have in them, by the fields that
    lead there; what lies in one container is counted together."""
    found: Counter[str] = Counter()
    if isinstance(thing, (dict, list, set, deque)):
        found[path] = len(thing)
        inner = [(f"{path}[]", value) for value in _values(thing)]
    else:
        inner = [(f"{path}.{name}", value) for name, value in vars(thing).items()]
    for name, value in inner:
        ours = type(value).__module__.startswith(("ste_jax.decoding", "ste_jax.generators"))
        if isinstance(value, (dict, list, set, deque)) or (ours and hasattr(value, "__dict__")):
            found.update(lengths(value, name))
    return found


def _values(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def resident() -> int:
    """Bytes of this process in memory, without what the allocator could give back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(directory: Path, marks: list[int]) -> None:
    local.KNOWN_TOKENS = KNOWN_TOKENS
    generator = open_generator(directory)
    for asked in ask(generator, marks):
        said = {"asked": asked, "resident": resident(), "lengths": lengths(generator)}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(mark) for mark in sys.argv[2:]])
