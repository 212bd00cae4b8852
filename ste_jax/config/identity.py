"""What is finished work identified by?

A fingerprint holds the knobs that a step reads, the model that it asks and the version of what it
does. `of` is the one way from knobs to what a fingerprint holds of them. Names and values in it are
format: with others, finished work would be made again.

`HELD` lists the fields that fingerprints have always held. Any other field came later: at the value
that stands for "as before" it is left out, so that what was made before it came is still what would
be made. That value is the field's default, unless `later` declares another. So a field that is
added with a default makes nothing anew, wherever it is added.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Collection, Mapping
from typing import Any

from ste_jax.system import hashing

HELD: Mapping[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "PoolKnobs": "path split instruction_field id_field require max_chars limit shards",
        "SelectKnobs": "labels content_free categories keep_categories drop_categories "
        "min_difficulty prefer_hard train heldout validation_fraction max_category_share "
        "near_duplicate_threshold",
        "PairKnobs": "rejected_from max_similarity max_example_similarity min_answer_chars "
        "drop_cut_off",
        "AnnotateKnobs": "samples waves policy",
        "JudgeKnobs": "force_verdict force_text",
        "CurateKnobs": "min_agreement balance verdicts limit",
        "TrainingKnobs": "start_from epochs max_steps sequence_length batch_rows accumulate "
        "learning_rate final_learning_rate_fraction warmup_steps beta1 beta2 weight_decay "
        "clip_norm remat param_dtype dtype validate_every lora",
        "DpoKnobs": "judgments beta nll_scale pairs_per_prompt negatives more_samples "
        "more_temperature epochs max_steps sequence_length batch_rows accumulate learning_rate "
        "final_learning_rate_fraction schedule_steps warmup_steps clip_norm validate_every",
        "Sft": "",
        "Dpo": "beta nll_scale",
        "LoraKnobs": "rank alpha matrices",
        "DecodingKnobs": "prompt_buckets new_buckets groups group_size singles prefill_chunk "
        "steps_per_round cache_tokens dtype",
        "DecodingOptions": "dtype groups group_size",
        "SamplingKnobs": "temperature top_p top_k min_p max_new_tokens stop",
        "Sampling": "max_new_tokens temperature top_p top_k stop ignore_eos",
        "Role": "name template sampling key",
        "JudgeCard": "template sampling knobs",
        "Template": "name system user examples start",
        "ModelConfig": "model_type vocab_size hidden_size intermediate_size num_layers num_heads "
        "num_kv_heads head_dim max_position kinds norm_eps norm_plus_one post_norms qk_norm "
        "tie_embeddings scale_embeddings qkv_bias o_bias mlp_bias activation query_scalar "
        "attention_softcap final_softcap experts experts_per_token normalize_experts lora",
        "LayerKind": "window rope_theta rope_scaling",
        "RopeScaling": "kind factor low_freq_factor high_freq_factor original_max_position factors",
        "Lora": "rank alpha matrices",
    }.items()
}
"""Name of a class -> the fields that are held whatever their value. It never grows: a new field is
left out at its default. Of a class that is not listed every field that has a default came later."""

_BEFORE = "before"


def later(default: Any, *, before: Any) -> Any:
    """Declares a field that was added when there was finished work already, and whose `default`
    changes results. `before` is the value by which the earlier work was made. An added field whose
    default changes nothing needs no declaration; if its default changes later, declare the old one
    as `before`."""
    return dataclasses.field(default=default, metadata={_BEFORE: before})


def came_later(*, before: Any) -> Any:
    """Declares a field without a default that was added when there was finished work already:
    `before` is the value by which that work was made."""
    return dataclasses.field(metadata={_BEFORE: before})


def of(
    knobs: Any, *, without: Collection[str] = (), only: Collection[str] | None = None
) -> dict[str, Any]:
    """What a fingerprint holds of a group of knobs: field -> plain value, in the order of fields.

    `without` names fields that decide nothing of the result, or that the fingerprint holds in
    another way; `only` names the fields to keep, if not all.
    """
    found = {}
    for field in dataclasses.fields(knobs):
        if field.name in without or (only is not None and field.name not in only):
            continue
        value = _plain(getattr(knobs, field.name))
        if _is_held(type(knobs), field.name) or value != _plain(before(field)):
            found[field.name] = value
    return found


def in_a_row(found: Mapping[str, Any], *names: str) -> list[Any]:
    """What `of` gave, as a list: the values of `names`, in this order, and the other fields, if
    there are any, as one mapping at the end."""
    rest = dict(found)
    row = [rest.pop(name) for name in names if name in rest]
    return [*row, rest] if rest else row


def complete(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """What `of` gave, completed by the fields that it left out: for values that are read back."""
    hints, found = typing.get_type_hints(kind), dict(values)
    for field in dataclasses.fields(kind):
        inner, there = hints[field.name], found.get(field.name)
        if dataclasses.is_dataclass(inner) and isinstance(there, Mapping):
            found[field.name] = complete(typing.cast(type, inner), there)
        elif field.name not in found and not _is_held(kind, field.name):
            usual = before(field)
            if usual is not dataclasses.MISSING:
                found[field.name] = _plain(usual)
    return found


def before(field: dataclasses.Field[Any]) -> Any:
    """The value of a field that stands for "as before"; `dataclasses.MISSING` if there is none."""
    if _BEFORE in field.metadata:
        return field.metadata[_BEFORE]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


class Identity(str):
    """A fingerprint that knows what it was made of, so that a change of it can be explained."""

    made_of: Mapping[str, Any]
    """`version`, `model`, `inputs` (a hash) and `knobs` by dotted name; empty if not known."""

    def __new__(cls, hash: str, made_of: Mapping[str, Any] | None = None) -> Identity:
        made = super().__new__(cls, hash)
        made.made_of = made_of or {}
        return made


def fingerprint(
    stage: str,
    version: int,
    knobs: Any,
    model: str = "",
    inputs: Any = None,
    named: Mapping[str, Any] | None = None,
) -> Identity:
    """What makes a stage's output what it is: the knobs it reads, the model it asks, its version.

    The package's version is not part of it: a new release must not throw finished work away.
    `named` gives the knobs in `knobs` by dotted name; it is kept beside the fingerprint.
    """
    made_of = {
        "version": version,
        "model": model,
        "inputs": _hash(inputs, 8) if inputs is not None else "",
        "knobs": json.loads(json.dumps(named or {}, default=list)),
    }
    return Identity(_hash([stage, version, knobs, model, inputs], 16), made_of)


def named(
    group: str, knobs: Any, *, without: Collection[str] = (), only: Collection[str] | None = None
) -> dict[str, Any]:
    """The knobs of a group by dotted name, to be kept beside a fingerprint; `without` and `only`
    are as in `of`."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(knobs):
        if field.name in without or (only is not None and field.name not in only):
            continue
        key, value = f"{group}.{field.name}", getattr(knobs, field.name)
        found |= named(key, value) if dataclasses.is_dataclass(value) else {key: _plain(value)}
    return found


def _hash(value: Any, size: int) -> str:
    text = json.dumps(value, sort_keys=True, default=list)
    return hashing.hex_digest(text, size)


def _is_held(kind: type, name: str) -> bool:
    for each in kind.__mro__:
        if each.__name__ in HELD:
            return name in HELD[each.__name__]
    return False


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return of(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
