"""How long do the matrix products of a training step take by themselves?

Products are counted forward and for both gradients; those of the output matrix only at the targets;
attention in the blocks in which it is computed. What a step computes a second time is not counted.
"""

from __future__ import annotations

from benchmarks.decoding.limit import linear
from benchmarks.products import Form, best
from benchmarks.training.work import Training
from ste_jax.finetuning.attention import BLOCK, MOST_BLOCKS

COUNT, TIMES = 5, 3
"""Different operands of a product, and how often all are run."""


def seconds(work: Training) -> dict[str, float]:
    """Seconds of a step's products, by kind."""
    config, parts = work.config, work.accumulate
    rows, layers = work.rows // parts, config.num_layers
    tokens, targets = rows * work.length, rows * (work.length // 2)
    body = sum(_three(shape, tokens, COUNT) for shape in linear(config).values())
    head = _three((config.vocab_size, config.hidden_size), targets, 1)
    return {
        "body": parts * layers * body / COUNT,
        "head": parts * head,
        "attention": parts * layers * _attention(work, rows) / COUNT,
    }


def _three(shape: tuple[int, int], rows: int, count: int) -> float:
    """Outputs, the gradient of the inputs and that of the matrix."""
    out, into = shape
    forward = (
        ("ri,io->ro", (rows, into), (into, out)),
        ("ri,oi->ro", (rows, into), (out, into)),
        ("oi,ri->or", (out, into), (rows, into)),
    )
    of_inputs = (
        ("ro,io->ri", (rows, out), (into, out)),
        ("ro,oi->ri", (rows, out), (out, into)),
        ("oi,or->ir", (out, into), (out, rows)),
    )
    of_matrix = (
        ("ri,ro->io", (rows, into), (rows, out)),
        ("ro,ri->oi", (rows, out), (rows, into)),
        ("ir,ro->io", (into, rows), (rows, out)),
    )
    return sum(best(*forms, count=count, times=TIMES) for forms in (forward, of_inputs, of_matrix))


def _attention(work: Training, rows: int) -> float:
    """Of `COUNT` layers: two products forward and four back, by block."""
    config, total = work.config, 0.0
    batch, size = rows * config.num_kv_heads, config.head_dim
    block = max(BLOCK, -(-work.length // MOST_BLOCKS))
    for start in range(0, work.length, block):
        keys = min(start + block, work.length)
        queries = (keys - start) * (config.num_heads // config.num_kv_heads)
        q, k, scores = (batch, queries, size), (batch, keys, size), (batch, queries, keys)
        forms: tuple[Form, ...] = (
            ("bqd,bsd->bqs", q, k),  # scores
            ("bqs,bsd->bqd", scores, k),  # what is mixed
            ("bqd,bsd->bqs", q, k),  # the gradient of the weights
            ("bqs,bqd->bsd", scores, q),  # of the values
            ("bqs,bsd->bqd", scores, k),  # of the queries
            ("bqs,bqd->bsd", scores, q),  # of the keys
        )
        for form in dict.fromkeys(forms):
            total += forms.count(form) * best(form, count=COUNT, times=TIMES)
    return total
