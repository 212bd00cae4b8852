"""A config is strict: what is wrong with it is said by file and key."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from ste_jax.config import from_plain, schema
from ste_jax.config.load import load_config
from ste_jax.system.errors import RequestError


def load(tmp_path, text="model: some/model\n", *overrides):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(str(path), overrides)


def test_groups_keep_the_defaults_of_what_is_not_named(tmp_path):
    found = load(tmp_path, "model: m\nroles: {judge: {sampling: {temperature: 0.2}}}\n")
    assert found.roles.judge.template == "judge"
    assert found.roles.judge.sampling.temperature == 0.2
    assert found.roles.judge.sampling.top_p == 0.9


def test_models_elsewhere(tmp_path):
    endpoint = "endpoints={big: {url: 'http://host:8000/v1', model: Big-70B}}"
    found = load(tmp_path, "model: m\n", endpoint, "annotate.generator={1: big}")
    assert found.endpoints["big"].model == "Big-70B" and found.endpoints["big"].concurrency == 32
    assert found.annotate.generator == {"1": "big"}
    again = from_plain.build(schema.Config, from_plain.to_dict(found), "again")
    assert again == found
    with pytest.raises(RequestError, match=r"select\.labels=score needs log-probabilities"):
        load(tmp_path, "model: m\n", endpoint, "select.generator=big", "select.labels=score")


def test_overrides(tmp_path):
    found = load(tmp_path, "model: m\n", "annotate.waves=[1, 3]", "finetune.learning_rate=1e-5")
    assert found.annotate.waves == (1, 3)
    assert found.finetune.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("finetun.epochs=3", "no key finetun; did you mean finetune"),
        ("finetune.epoch=3", "no key finetune.epoch; did you mean epochs"),
        ("finetune.lr=1", "no key finetune.lr; did you mean learning_rate"),
        ("finetune.epochs=many", "finetune.epochs must be a number, not 'many'"),
        ("pool.shards=1.5", "pool.shards must be a whole number"),
        ("judge.force_verdict=1", "judge.force_verdict must be true or false"),
        ("select.labels=guess", "one of generate, score"),
        ("annotate.waves=2", "annotate.waves must be a list of a whole number"),
        ("pool.shards=0", "pool.shards=0 is out of its range; it must be from 1 to 99999"),
        ("roles.judge.sampling.max_new_tokens=-1", "max_new_tokens=-1 is out of its range"),
        ("evaluate.bootstrap=0", "evaluate.bootstrap=0 is out of its range; it must be from 1 to"),
        ("decoding.prompt_buckets=[500]", "multiple of decoding.prefill_chunk"),
        ("curate.min_agreement=0.5", "annotate.policy=all"),
        ("finetune.accumulate=3", "must divide"),
        ("finetune.stages=[]", "finetune.stages must name at least one phase"),
        ("finetune.stages=[sft, sft]", "each once"),
        ("finetune.schedule_steps=-1", "finetune.schedule_steps=-1 is out of its range"),
        ("finetune.keep_states=0", "finetune.keep_states=0 is out of its range"),
        ("select.drop_categories=[nonsense]", "nonsense"),
        ("name", "key=value"),
        ("roles.judge.sampling.min_p=1.5", "min_p=1.5 is out of its range; it must be from 0 to 1"),
        ("select.generator=big", "select.generator is 'big', which is none of endpoints (none)"),
        ("annotate.generator={4: big}", "the iteration '4', not one from 1 to iterations=3"),
        ("annotate.generator={1: big}", "annotate.generator.1 is 'big', which is none"),
        ("endpoints={big: {model: m}}", "the key endpoints.big.url is missing"),
        ("endpoints={big: {model: m, url: host}}", "endpoints.big.url must be http"),
        (
            "endpoints={big: {model: m, url: 'http://host/v1', concurrency: 0}}",
            "endpoints.big.concurrency=0 is out of its range",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, override, told):
    with pytest.raises(RequestError, match=re.escape(told)):
        load(tmp_path, "model: m\n", override)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("annotate.waves=[]", "annotate.waves must list at least one size"),
        ("curate.limit=1", "curate.limit must be 0 (all) or at least 2, not 1"),
        (
            "curate={verdicts: any, min_agreement: 0.1}",
            "curate.min_agreement counts correct verdicts",
        ),
        ("evaluate.sets=[{name: a b, data: d}]", "evaluate.sets: the name 'a b' must be letters"),
        ("evaluate.sets=[{name: a, data: d}, {name: a, data: e}]", "evaluate.sets: the name 'a'"),
        ("select={generator: big, labels: score}", "select.labels=score needs log-probabilities"),
        ("decoding.new_buckets=[8, 4]", "decoding.new_buckets=[8, 4]: rising sizes are needed"),
        ("roles.modify.template_arguments={turns: 1}", "roles.modify.template_arguments.turns: "),
        ("endpoints={big: {model: m, url: 'http://h/v1', key_variable: a-b}}", "endpoints.big.key"),
        ("evaluate.greedy=true", "evaluate.votes=3 at evaluate.greedy=true would be one and the"),
    ],
)
def test_what_contradicts_is_named_with_file_and_key(tmp_path, override, told):
    with pytest.raises(RequestError) as refused:
        load(tmp_path, "model: m\n", override)
    assert str(refused.value).startswith(f"{tmp_path / 'run.yaml'}: {told}")


def test_knobs_made_in_python_are_looked_at_as_if_read():
    from_plain.check(schema.DecodingKnobs(), "decoding")
    for knobs, told in (
        (schema.DecodingKnobs(groups=0), "DecodingKnobs: decoding.groups=0 is out of its range"),
        (schema.DecodingKnobs(new_buckets=(2, 1)), "DecodingKnobs: decoding.new_buckets=[2, 1]: "),
    ):
        with pytest.raises(RequestError, match=re.escape(told)):
            from_plain.check(knobs, "decoding")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("finetune.dpo.beta=0", "finetune.dpo.beta=0.0 is out of its range; it must be above 0"),
        ("finetune.dpo.epochs=0", "finetune.dpo.epochs=0.0 is out of its range"),
        ("finetune.dpo.more_samples=-1", "more_samples=-1 is out of its range"),
    ],
)
def test_what_is_wrong_with_dpo_is_named(tmp_path, override, told):
    words = ["finetune.stages=[sft, dpo]"]
    assert load(tmp_path, "model: m\n", *words).finetune.stages == ("sft", "dpo")
    with pytest.raises(RequestError, match=re.escape(told)):
        load(tmp_path, "model: m\n", *words, override)


@pytest.mark.parametrize("text", ["- a list\n", "a: [1\n", "name: x\n"])
def test_a_file_that_is_no_config(tmp_path, text):
    with pytest.raises(RequestError, match=r"run\.yaml"):
        load(tmp_path, text)


def test_no_such_config():
    with pytest.raises(RequestError, match="absent"):
        load_config("absent")


def test_every_shipped_config_is_read_and_survives_being_written():
    for name in ("pico", "smollm2-135m", "smollm2-135m-large", "paper"):
        found = load_config(name)
        text = yaml.safe_dump(from_plain.to_dict(found))
        assert from_plain.build(schema.Config, yaml.safe_load(text), "again") == found


def test_every_knob_has_a_meaning_or_a_name_that_says_it():
    for group in vars(schema).values():
        if dataclasses.is_dataclass(group) and isinstance(group, type):
            assert group.__doc__


def test_a_key_of_an_earlier_version_is_still_read() -> None:
    def captions(**keys: str) -> list[str]:
        sets = [{"name": "mine", "data": "mine.jsonl", **keys}]
        read = from_plain.build(schema.EvaluateKnobs, {"sets": sets}, "my.yaml", "evaluate")
        return [each.caption for each in read.sets]

    assert captions(told="as it was") == captions(caption="as it was") == ["as it was"]
    with pytest.raises(RequestError, match=r"my\.yaml: there is no key evaluate\.sets\[0\]\.told"):
        captions(told="as it was", caption="as it is")
