"""Which finished runs are kept, and which knobs do they hold?

Between them they hold every knob that a fingerprint treats in a way of its own, at the value that
stands for "as before" in one variant and at another value in another variant."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests import tiny
from tests.endpoints.endpoint import Answer, chat, serving
from tests.pipeline.test_labelled_sets import write_pairs

ELSEWHERE = "http://localhost:1/v1"
"""The address of an endpoint that is gone: what was finished asks it nothing."""

DPO = {
    "batch_rows": 8,
    "accumulate": 1,
    "learning_rate": 2e-2,
    "final_learning_rate_fraction": 0.1,
    "schedule_steps": 0,
    "validate_every": 8,
    "epochs": 4.0,
    "max_steps": 16,
}
SMALL = {"track__tensorboard": False, "pool__shards": 2, "finetune__validate_every": 8}
MODIFIES = {"\n[Modified Instruction]\n": 2.6}
"""What makes pairs come of more instructions."""
DECIDES = {"▁[[A]]": 3.4, "▁[[B]]": 3.4}
"""What makes more judgments end with a verdict."""


def _shrink(root: Path, rows: int, **bias: float) -> None:
    """Less of the tiny model and of its pool; and a few labelled pairs."""
    tiny.write_model(root / "model", layers=1, **bias)
    tiny.write_pool(root / "pool.jsonl", rows=rows)
    write_pairs(root / "words.jsonl", 8)


def plain(root: Path) -> dict[str, Any]:
    """Two iterations of SFT with few knobs set."""
    values = tiny.config(
        root,
        **SMALL,
        select__train=250,
        select__heldout=100,
        roles__respond__sampling__max_new_tokens=22,
        roles__modify__sampling__max_new_tokens=24,
        pair__min_answer_chars=1,
    )
    _shrink(root, 700)
    return values


def dpo_annotate(root: Path) -> dict[str, Any]:
    """SFT and DPO on the judgments of one annotation, with labels by score."""
    values = tiny.config_of_small_models(root)
    _shrink(root, 280, **MODIFIES)
    values["iterations"] = 1
    values["track"] = {"tensorboard": False}
    values["pool"]["shards"] = 2
    values["select"] |= {"train": 160, "heldout": 40}
    values["finetune"] |= {
        "stages": ["sft", "dpo"],
        "batch_rows": 8,
        "dpo": {**DPO, "judgments": "annotate"},
    }
    return values


def dpo_sft(root: Path) -> dict[str, Any]:
    """SFT and DPO on the judgments of the judge that SFT gave, with most knobs of later versions
    at values of their own."""
    values = tiny.config_of_small_models(root)
    changes: dict[str, Any] = dict(
        **SMALL,
        iterations=1,
        annotate__policy="first_correct",
        curate__min_agreement=0.0,
        select__labels="generate",
        select__train=300,
        select__heldout=60,
        pool__sample=380,
        pool__context_fields=["context"],
        select__prefer_hard=True,
        annotate__orders="one",
        annotate__samples=2,
        curate__limit=4,
        decoding__weights="int8",
        finetune__stages=["sft", "dpo"],
        finetune__batch_rows=8,
        finetune__max_steps=12,
        finetune__param_dtype="bfloat16",
        finetune__too_long="truncate",
        finetune__schedule="linear",
        finetune__schedule_steps=40,
        finetune__moments_dtype="bfloat16",
        finetune__select="last",
        finetune__lora={"rank": 2, "matrices": ["q", "v"]},
        finetune__handover="memory",
        finetune__sequence_length=34,
        finetune__dpo={
            **DPO,
            "sequence_length": 128,
            "schedule_steps": 30,
            "negatives": ["incorrect"],
            "more_samples": 8,
            "more_temperature": 1.5,
        },
    )
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    _shrink(root, 420, **MODIFIES, **DECIDES)
    values["evaluate"]["sets"] = [
        {
            "name": "words",
            "data": str(root / "words.jsonl"),
            "by": ["section"],
            "told": "Pairs of words.",
        }
    ]
    for role in values["roles"].values():
        role["template_arguments"] = {"style": "short", "unheard": 1}
        role["sampling"]["min_p"] = 0.01
    _give_style(root / "model" / "tokenizer_config.json")
    return values


def _give_style(path: Path) -> None:
    """A chat template that hears of one of the two arguments."""
    settings = json.loads(path.read_text())
    settings["chat_template"] = (
        "{% if style == 'long' %}<|im_start|>{% endif %}" + settings["chat_template"]
    )
    path.write_text(json.dumps(settings))


def endpoints(root: Path) -> dict[str, Any]:
    """Another model labels the pool and judges, a third makes the pairs; ours learns of them."""
    values = tiny.config(
        root,
        **SMALL,
        iterations=1,
        endpoints={
            "big": {"url": ELSEWHERE, "model": "big-one", "leave_out": ["top_k", "min_p"]},
            "other": {"url": ELSEWHERE, "model": "other-one", "leave_out": ["seed"]},
        },
        select__generator="big",
        pair__generator="other",
        annotate__generator={"1": "big"},
        judge__force_verdict=False,
        select__train=60,
        select__heldout=20,
        finetune__optimizer="adafactor",
        finetune__schedule="constant",
    )
    _shrink(root, 150)
    return values


@contextlib.contextmanager
def answering(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config with endpoints that answer, in the words of the tiny model."""

    def answer(payload: dict[str, Any], _: int) -> Answer:
        draw = random.Random(json.dumps([payload["messages"], payload.get("seed")]))
        last = payload["messages"][-1]
        said = " " + " ".join(draw.sample(tiny.WORDS, 4))
        begun = last["content"] if last["role"] == "assistant" else ""
        if begun.startswith(" Category:"):
            return chat(f" {draw.choice(tiny.CATEGORIES)}")
        if "[Modified Instruction]" in begun:
            more = " ".join(draw.sample(tiny.WORDS, 4))
            return chat(f"{said}\n[Response]\n {more}")
        if last["role"] == "user" and last["content"].count("\n") == 2:
            return chat(f"{said} [[{draw.choice('AB')}]]")
        return chat(said)

    with serving(answer) as there:
        yield {
            **values,
            "endpoints": {
                name: {**knobs, "url": there.url} for name, knobs in values["endpoints"].items()
            },
        }


EVALUATE = {"dpo_sft": ["--weights", "int8", "--votes", "2"]}
"""With which options the best judge of a variant is measured besides, by `ste evaluate`."""

VARIANTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "plain": plain,
    "dpo_annotate": dpo_annotate,
    "dpo_sft": dpo_sft,
    "endpoints": endpoints,
}


def running(variant: str) -> list[str]:
    """The words of the command that makes a variant's run, or goes on with it."""
    return ["run", f"{variant}/config.yaml", "--dir", f"{variant}/run"]


def evaluating(variant: str) -> list[str]:
    """The words of the command that measures its judge on a file of pairs."""
    words = ["evaluate", f"{variant}/run", "--benchmark", "pairs"]
    words += ["--data", f"{variant}/words.jsonl", "--out", f"{variant}/evaluated"]
    return words + EVALUATE.get(variant, [])


def reachable(values: dict[str, Any]) -> AbstractContextManager[dict[str, Any]]:
    """The config as it is run while its archive is made."""
    return answering(values) if values.get("endpoints") else contextlib.nullcontext(values)
