"""How long do the matrix products of a workload take by themselves?

The sum over all of them is a limit that no engine of the same number of slots passes on this
machine with this compiler: nothing else is computed, and each product is timed alone, in the form
and layout in which it is fastest of those tried, over as many different matrices as the model has
layers (so that none waits in a cache for its next use).
"""

from __future__ import annotations

from benchmarks.decoding.work import Workload
from benchmarks.products import Form, best
from ste_jax.config.schema import DecodingKnobs
from ste_jax.models.config import ModelConfig


def linear(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of a layer's matrices."""
    d, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q": (q, d),
        "k": (kv, d),
        "v": (kv, d),
        "o": (d, q),
        "gate": (inner, d),
        "up": (inner, d),
        "down": (d, inner),
    }


def seconds(config: ModelConfig, work: Workload, knobs: DecodingKnobs) -> dict[str, float]:
    """Seconds of the products of the prompts and of the new tokens, by kind."""
    slots = knobs.groups * knobs.group_size
    rounds = -(-len(work.prompts) * work.samples // slots)
    steps = rounds * work.new_tokens
    chunk = knobs.prefill_chunk
    # The last token of a prompt is the first step's.
    pieces = [-(-(len(prompt) - 1) // chunk) for prompt in work.prompts]
    # Of a prompt's last layer only keys and values are wanted.
    most = 1 - 1 / config.num_layers
    found = {}
    found["prefill, body"] = sum(pieces) * sum(
        value if name in ("k", "v") else most * value
        for name, value in _matrices(config, chunk).items()
    )
    # How often a piece is the first, second, ... of its prompt.
    found["prefill, attention"] = most * sum(
        sum(number >= index for number in pieces) * _prompt_attention(config, chunk, chunk * index)
        for index in range(1, max(pieces) + 1)
    )
    found["steps, body"] = steps * sum(_matrices(config, slots).values())
    found["steps, head"] = steps * _head(config, slots)
    # Of a row's new tokens half are there on average.
    attention = _step_attention(config, work, knobs, work.new_tokens // 2)
    found["steps, attention"] = steps * sum(attention.values())
    return found


def of_a_step(config: ModelConfig, work: Workload, knobs: DecodingKnobs) -> dict[str, float]:
    """Seconds of the products of one step, by the names that they have in the engine's programs,
    and as large as there: of a row's new tokens all that have a place."""
    slots = knobs.groups * knobs.group_size
    return {
        **_matrices(config, slots),
        "head": _head(config, slots),
        **_step_attention(config, work, knobs, work.new_tokens),
    }


def of_a_piece(config: ModelConfig, work: Workload, knobs: DecodingKnobs) -> dict[str, float]:
    """Seconds of the products of the last piece of the longest prompt, which sees all of those
    before it, by the names that they have in the engine's programs."""
    chunk, kv = knobs.prefill_chunk, config.num_kv_heads
    queries = chunk * config.num_heads // kv
    return {
        **_matrices(config, chunk),
        **_attention(config, "prefix/", kv, queries, knobs.prompt_buckets[-1] - chunk),
        **_attention(config, "own/", kv, queries, chunk),
    }


def _matrices(config: ModelConfig, rows: int) -> dict[str, float]:
    """Of every layer's matrices of that name."""
    return {
        name: best(*_linear_forms(shape, rows), count=config.num_layers)
        for name, shape in linear(config).items()
    }


def _head(config: ModelConfig, rows: int) -> float:
    shape = (config.vocab_size, config.hidden_size)
    return best(*_linear_forms(shape, rows), count=1)


def _linear_forms(shape: tuple[int, int], rows: int) -> tuple[Form, ...]:
    """The matrix from the left, to rows or to columns, and from the right."""
    outputs, inputs = shape
    return (
        ("oi,ir->or", (outputs, inputs), (inputs, rows)),
        ("oi,ri->or", (outputs, inputs), (rows, inputs)),
        ("ri,io->ro", (rows, inputs), (inputs, outputs)),
    )


def _prompt_attention(config: ModelConfig, chunk: int, seen: int) -> float:
    """A piece of `chunk` tokens to `seen` tokens, itself among them; no mask spares anything."""
    kv = config.num_kv_heads
    return sum(_attention(config, "", kv, chunk * config.num_heads // kv, seen).values())


def _step_attention(
    config: ModelConfig, work: Workload, knobs: DecodingKnobs, past: int
) -> dict[str, float]:
    """Of the prompts and of the rows' own `past` tokens."""
    kv, groups, rows = config.num_kv_heads, knobs.groups, knobs.group_size
    each = config.num_heads // kv
    return {
        **_attention(config, "prompt/", groups * kv, rows * each, work.longest),
        **_attention(config, "past/", groups * rows * kv, each, past),
    }


def _attention(
    config: ModelConfig, where: str, batch: int, queries: int, keys: int
) -> dict[str, float]:
    """The two products of `batch` heads."""
    size, count = config.head_dim, config.num_layers
    scores = ("bqd,bsd->bqs", (batch, queries, size), (batch, keys, size))
    turned = ("bqd,bds->bqs", (batch, queries, size), (batch, size, keys))
    mixed = ("bqs,bsd->bqd", (batch, queries, keys), (batch, keys, size))
    return {
        f"{where}scores": best(scores, turned, count=count),
        f"{where}values": best(mixed, count=count),
    }
