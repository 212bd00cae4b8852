"""Does finished work stay finished when knobs are added, and only then?"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ste_jax.commands.options import DecodingOptions
from ste_jax.config import identity, schema
from ste_jax.config.schema import Config, DecodingKnobs, FinetuneKnobs, SamplingKnobs
from ste_jax.finetuning.knobs import TrainingKnobs
from ste_jax.finetuning.objectives import Dpo, Sft, aim_of
from ste_jax.generation import Sampling
from ste_jax.models.config import LayerKind, Lora, ModelConfig, RopeScaling
from ste_jax.pipeline import annotate
from ste_jax.pipeline.intake import _read_how
from ste_jax.pipeline.phases import PHASES
from ste_jax.prompts.render import Template
from ste_jax.stages import judge_card
from ste_jax.stages.judge_card import JudgeCard
from ste_jax.stages.roles import Role, make_role, role_fingerprint
from ste_jax.system.errors import RequestError
from ste_jax.tasks import PAIRWISE

GROUPS = [kind for _, kind in inspect.getmembers(schema, dataclasses.is_dataclass)]
CONFIG = Config(model="pico")
TRAINING = TrainingKnobs.of(FinetuneKnobs())
MODEL = ModelConfig(
    vocab_size=8,
    hidden_size=4,
    intermediate_size=4,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=4,
    max_position=8,
    kinds=(LayerKind(rope_scaling=RopeScaling(kind="linear")),),
    lora=Lora(rank=1, alpha=1.0, matrices=("q",)),
)


def widened(value: Any, only: str, added: int = 0) -> Any:
    """A value with a field more, `added`, in each group of knobs in it that is called `only`, as if
    its class had got the field in a later version, with 0 for its default."""
    if isinstance(value, tuple):
        return tuple(widened(each, only, added) for each in value)
    if not dataclasses.is_dataclass(value):
        return value
    fields = {
        f.name: widened(getattr(value, f.name), only, added) for f in dataclasses.fields(value)
    }
    kind: Any = type(value)
    if kind.__name__ != only:
        return dataclasses.replace(value, **fields)  # type: ignore[type-var]
    wider = dataclasses.make_dataclass(
        kind.__name__,
        [("added_later", int, dataclasses.field(default=0))],
        bases=(kind,),
        frozen=True,
        kw_only=True,
    )
    return wider(**fields, added_later=added)


def role(config: Config) -> Role:
    knobs = config.roles.judge
    made = make_role("judge", knobs, seed=0, task=PAIRWISE)
    return dataclasses.replace(made, sampling=Sampling(max_new_tokens=4, min_p=0.1))


HASHED: dict[str, tuple[str, Callable[[Callable[[Any], Any]], Any]]] = {
    "the pool": ("PoolKnobs", lambda wide: _read_how(wide(CONFIG).pool, 2)),
    "a selection": (
        "SelectKnobs",
        lambda wide: identity.of(wide(CONFIG).select, without=("generator",)),
    ),
    "pairs": ("PairKnobs", lambda wide: identity.of(wide(CONFIG).pair, without=("generator",))),
    "judgments": ("AnnotateKnobs", lambda wide: annotate.annotated_identity(wide(CONFIG).annotate)),
    "how a judge is asked": ("JudgeKnobs", lambda wide: identity.of(wide(CONFIG).judge)),
    "a training set": ("CurateKnobs", lambda wide: identity.of(wide(CONFIG).curate)),
    "a training": (
        "TrainingKnobs",
        lambda wide: wide(TRAINING).identity(),
    ),
    "a training with LoRA": (
        "LoraKnobs",
        lambda wide: wide(TRAINING).identity(),
    ),
    "a judge by DPO": ("DpoKnobs", lambda wide: PHASES["dpo"].identity(wide(CONFIG))),
    "the objective of SFT": ("Sft", lambda wide: aim_of(wide(Sft()))),
    "the objective of DPO": ("Dpo", lambda wide: aim_of(wide(Dpo(beta=0.1, nll_scale=1.5)))),
    "a role": ("Role", lambda wide: role_fingerprint(wide(role(CONFIG)))),
    "how a role is drawn": ("Sampling", lambda wide: role_fingerprint(wide(role(CONFIG)))),
    "a judge's card": ("JudgeCard", lambda wide: judge_card.to_dict(wide(card()))),
    "a card's sampling": ("SamplingKnobs", lambda wide: judge_card.to_dict(wide(card()))),
    "a card's template": ("Template", lambda wide: judge_card.to_dict(wide(card()))),
    "shapes": ("DecodingKnobs", lambda wide: identity.of(wide(CONFIG).decoding)),
    "the shapes of a command": (
        "DecodingOptions",
        lambda wide: wide(DecodingOptions(max_prompt_tokens=600)).identity(),
    ),
    "a model": ("ModelConfig", lambda wide: identity.of(wide(MODEL))),
    "a model's layers": ("LayerKind", lambda wide: identity.of(wide(MODEL))),
    "a model's positions": ("RopeScaling", lambda wide: identity.of(wide(MODEL))),
    "a model's LoRA": ("Lora", lambda wide: identity.of(wide(MODEL))),
}
"""What is in fingerprints or compared with what was kept -> the class of which it holds fields, and
the value of it, made of what a function lets through."""


def card() -> JudgeCard:
    return judge_card.default()


@pytest.mark.parametrize("what", HASHED)
def test_a_field_that_is_added_changes_nothing_until_it_is_set(what: str) -> None:
    kind, value = HASHED[what]
    before = json.dumps(value(lambda each: each), default=list)
    assert json.dumps(value(lambda each: widened(each, kind)), default=list) == before
    if what != "the shapes of a command":  # these are named one by one
        set_to_1 = json.dumps(value(lambda each: widened(each, kind, 1)), default=list)
        assert set_to_1 != before


def test_every_group_that_lies_whole_in_a_fingerprint_is_tried() -> None:
    assert {kind for kind, _ in HASHED.values()} == set(identity.HELD)


@pytest.mark.parametrize("group", GROUPS, ids=lambda kind: kind.__name__)
def test_a_field_more_in_any_group_leaves_a_whole_config_as_it_is(group: type) -> None:
    made = CONFIG if group is not schema.EndpointKnobs else schema.EndpointKnobs(url="u", model="m")
    if group is schema.LabelledSetKnobs:
        made = schema.LabelledSetKnobs(name="n", data="d")
    assert identity.of(widened(made, group.__name__)) == identity.of(made)


@pytest.mark.parametrize(("name", "fields"), identity.HELD.items())
def test_what_is_held_is_there(name: str, fields: frozenset[str]) -> None:
    classes = {kind.__name__: kind for kind in (*GROUPS, *OTHERS)}
    assert fields <= {field.name for field in dataclasses.fields(classes[name])}


OTHERS: tuple[Any, ...] = (
    TrainingKnobs,
    Sft,
    Dpo,
    DecodingOptions,
    Sampling,
    Role,
    JudgeCard,
    Template,
    ModelConfig,
    LayerKind,
    RopeScaling,
    Lora,
)


def later_fields() -> Iterator[tuple[str, Any]]:
    for kind in (*GROUPS, *OTHERS):
        for field in dataclasses.fields(kind) if kind.__name__ in identity.HELD else ():
            if field.name not in identity.HELD[kind.__name__]:
                yield f"{kind.__name__}.{field.name}", identity.before(field)


def test_what_stands_for_as_before_never_changes() -> None:
    """Where the default of such a field is to change, `identity.later` declares the old one. A new
    field is added here, with the value by which earlier work was made."""
    found = {name: value for name, value in later_fields() if name.split(".")[1] not in APART}
    assert found == {
        "PoolKnobs.context_fields": (
            "input",
            "context",
            "instances[0].input",
            "system_prompt",
            "system",
            "history",
        ),
        "PoolKnobs.sample": 0,
        "JudgeKnobs.task": "pairwise",
        "DecodingKnobs.weights": "dtype",
        "TrainingKnobs.too_long": "drop",
        "TrainingKnobs.optimizer": "adamw",
        "TrainingKnobs.schedule": "cosine",
        "TrainingKnobs.schedule_steps": 0,
        "TrainingKnobs.moments_dtype": "float32",
        "TrainingKnobs.rounding": "nearest",
        "TrainingKnobs.select": "best",
        "DecodingOptions.weights": "dtype",
        "Sampling.min_p": 0.0,
        "Role.template_arguments": {},
        "JudgeCard.template_arguments": {},
    }


APART = (
    *("generator", "orders", "mesh", "save_every", "keep_states", "group"),
    "max_prompt_tokens",
)
"""What is told apart or decides nothing: never in what a fingerprint holds of its group."""


def test_the_value_that_stands_for_as_before_may_differ_from_the_default() -> None:
    usual = TrainingKnobs.of(FinetuneKnobs(param_dtype="bfloat16"))
    assert usual.rounding == "stochastic"
    assert identity.of(usual)["rounding"] == "stochastic"
    assert "rounding" not in identity.of(dataclasses.replace(usual, rounding="nearest"))


def test_what_is_kept_is_read_back_as_it_was() -> None:
    knobs = DecodingKnobs(weights="int8", groups=3)
    assert identity.complete(DecodingKnobs, identity.of(knobs))["weights"] == "int8"
    assert identity.complete(DecodingKnobs, identity.of(DecodingKnobs()))["weights"] == "dtype"
    there = identity.complete(
        TrainingKnobs, identity.of(TrainingKnobs.of(FinetuneKnobs(rounding="nearest")))
    )
    assert there["rounding"] == "nearest" and there["lora"]["rank"] == 0


def test_a_card_with_a_key_that_nobody_knows_is_refused() -> None:
    values = judge_card.to_dict(card())
    values["sampling"]["mood"] = 1
    with pytest.raises(RequestError, match=r"a\.json: there is no key judge\.sampling\.mood"):
        judge_card.from_dict(values, "a.json")


def test_a_row_of_values_keeps_its_places() -> None:
    found = {"b": 2, "a": 1}
    assert identity.in_a_row(found, "a", "b", "c") == [1, 2]
    assert identity.in_a_row({**found, "z": 3}, "a", "c", "b") == [1, 2, {"z": 3}]


def test_only_and_without() -> None:
    knobs = SamplingKnobs(stop=("x",))
    assert identity.of(knobs, only=("stop", "top_k")) == {"top_k": 0, "stop": ["x"]}
    assert "stop" not in identity.of(knobs, without=("stop",))
