"""Do the hashes that name, order and seed things still come out as they did?

`hashes.json` lists what the version gave that the archives were made with. What goes into these
hashes is format: with another value, finished work would be made again, or made otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from ste_jax import records
from ste_jax.commands.options import DecodingOptions
from ste_jax.config import identity
from ste_jax.config.schema import Config, FinetuneKnobs, PoolKnobs, RoleKnobs, SamplingKnobs
from ste_jax.decoding.rows import hash_id
from ste_jax.endpoints.openai import _seed
from ste_jax.finetuning import packing
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.objectives import Preference, units_of
from ste_jax.finetuning.packing import Example
from ste_jax.generation import Request, Sampling
from ste_jax.model_io.open_model import source_fingerprint
from ste_jax.model_io.sources import Source
from ste_jax.pico.kinds import KINDS
from ste_jax.pico.world import Task
from ste_jax.pipeline.phases import PHASES
from ste_jax.run import marks, tables
from ste_jax.stages import intake, near_duplicates
from ste_jax.stages.roles import make_role, role_fingerprint, sample_key
from ste_jax.system import files
from ste_jax.tasks import PAIRWISE

LISTED = Path(__file__).parent / "hashes.json"


def short(value: Any) -> str:
    """A hash of a long value, for the list."""
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def a_table(root: Path) -> tables.Table[Any]:
    table = tables.Table(epath.Path(root / "labels"), records.Label, 2)
    for shard, ids in enumerate((("a", "b"), ("c",))):
        rows = (
            records.Label(id=id, category="x", difficulty=None, failure=None, text="") for id in ids
        )
        table.write(shard, rows)
    return table


def a_seal(root: Path) -> str:
    files.write_twice(epath.Path(root / "mark.json"), {"fingerprint": "ü", "ste_jax": "0"})
    return str(json.loads((root / "mark.json").read_text())["check"])


def a_source(root: Path) -> Path:
    """A directory of files, and one that lies deeper."""
    (root / "source" / "inner").mkdir(parents=True)
    (root / "source" / "b.txt").write_text("two")
    (root / "source" / "inner" / "a.txt").write_text("three")
    return root / "source"


def a_role(root: Path, **knobs: Any) -> list[Any]:
    sampling = SamplingKnobs(max_new_tokens=7, **knobs.pop("sampling", {}))
    chat = knobs.pop("chat_template", None)
    role = make_role(
        "judge",
        RoleKnobs(template="judge", sampling=sampling, **knobs),
        seed=3,
        chat_template=chat,
        task=PAIRWISE,
    )
    name, template, *rest = role_fingerprint(role)
    return [name, short(template), *rest]  # the words of a shipped template are long


EXAMPLES = [
    Example(id=f"e{n}", prompt_ids=[n] * 9, completion_ids=[n] * (n + 1)) for n in range(12)
]
PREFERENCES = [
    Preference(id=f"p{n}", prompt_ids=[n], chosen_ids=[1, n], rejected_ids=[2], reference=reference)
    for n, reference in enumerate((None, (-1.5, -2.25)))
]
WORDS = [(f"id {n}", f"the same {n % 3} words as in the other {n // 8} texts") for n in range(16)]
REQUEST = Request(
    id="row/judge", messages=(), sampling=Sampling(max_new_tokens=1), key=1234567, samples=(0,)
)


def told(knobs: FinetuneKnobs, phase: str = "sft") -> dict[str, Any]:
    return PHASES[phase].training_knobs(Config(model="m", finetune=knobs)).identity()


def bands() -> list[Any]:
    return sorted(map(list, near_duplicates._candidates(WORDS, {"id 3": "context"})))


VALUES: dict[str, Callable[[Path], Any]] = {
    "content id": lambda _: records.content_id("pair", "a", ["b", 1], None, "\ud800ü"),
    "instruction id": lambda _: records.instruction_id([{"role": "user", "content": "Hi"}]),
    "shards": lambda _: [records.shard_of(f"row {n}", 8) for n in range(16)],
    "orders": lambda _: {
        purpose: records.hash_order("an id", purpose)
        for purpose in ("sample", "quota", "split", "order", "preference", "balance", "limit")
    },
    "fingerprint": lambda _: identity.fingerprint(
        "stage", 2, {"b": (1, 2.5), "a": [None, True]}, model="m", inputs=["ü"]
    ),
    "fingerprint of little": lambda _: identity.fingerprint("stage", 1, "knob"),
    "row ids": lambda root: tables.row_ids([a_table(root), a_table(root)]),
    "set aside": lambda _: [
        marks.aside(epath.Path("x/finetune.mark.json"), made_under).as_posix()
        for made_under in ("ab", "")
    ],
    "seal of a mark": a_seal,
    "source of a pool": lambda root: [
        each[1]
        for each in intake.source_identity(
            PoolKnobs(path=(str(a_source(root) / "b.txt"), "no such"))
        )
    ],
    "files of a model": lambda root: source_fingerprint(
        Source(kind="hf", path=epath.Path(a_source(root)), name="x")
    ),
    "sample keys": lambda _: [
        sample_key(7, *of)
        for of in (("judge", 0), ("annotate", 2), ("dpo_judgments", 1), ("evaluate", 0))
    ],
    "seed at an endpoint": lambda _: _seed(REQUEST, 3),
    "row of a random key": lambda _: hash_id("row/judge"),
    "role": a_role,
    "role with a filter": lambda root: a_role(root, sampling={"min_p": 0.1, "stop": ("x",)}),
    "role with arguments": lambda root: a_role(root, template_arguments={"a": 1, "b": None}),
    "role with arguments that are heard": lambda root: a_role(
        root, template_arguments={"a_word": 1, "other": 2}, chat_template="{{ a_word }}"
    ),
    "role of a model that thinks": lambda root: a_role(
        root, template_arguments={"other": 2}, chat_template="<think></think>"
    ),
    "decoding of a command": lambda _: [
        DecodingOptions().identity(),
        DecodingOptions(weights="int8", dtype="bfloat16").identity(5000),
        DecodingOptions(max_prompt_tokens=600).identity(),
    ],
    "fine-tuning": lambda _: told(FinetuneKnobs()),
    "fine-tuning in bfloat16": lambda _: told(FinetuneKnobs(param_dtype="bfloat16")),
    "fine-tuning in bfloat16 as before": lambda _: told(
        FinetuneKnobs(param_dtype="bfloat16", rounding="nearest")
    ),
    "fine-tuning with later knobs": lambda _: told(
        FinetuneKnobs(
            too_long="truncate",
            optimizer="adafactor",
            schedule="linear",
            schedule_steps=9,
            moments_dtype="bfloat16",
            select="last",
        )
    ),
    "DPO": lambda _: told(FinetuneKnobs(stages=("sft", "dpo")), "dpo"),
    "examples": lambda _: units_of(EXAMPLES[:2]),
    "preferences": lambda _: units_of(PREFERENCES),
    "plan": lambda _: [
        [[EXAMPLES[place].id for place in row] for row in step]
        for step in packing.plan(
            EXAMPLES,
            TrainingKnobs.of(FinetuneKnobs(sequence_length=40, batch_rows=2, epochs=2.0)),
            5,
        ).steps
    ],
    "near duplicates": lambda _: short(bands()),
    "who sees a task of pico": lambda _: [
        Task(kind=KINDS[0].name, operands=(("n", n),), phrasing=0).share for n in range(30)
    ],
}


@pytest.mark.parametrize("name", VALUES)
def test_a_hash_is_what_it_was(name: str, tmp_path: Path) -> None:
    listed = json.loads(LISTED.read_text())
    # As text: the order of keys is part of what names a training.
    assert json.dumps(VALUES[name](tmp_path), default=list) == json.dumps(listed[name])


def test_every_listed_hash_is_asked_for() -> None:
    assert json.loads(LISTED.read_text()).keys() == VALUES.keys()
