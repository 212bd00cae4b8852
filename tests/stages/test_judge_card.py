"""How is a judge asked that remembers it, and one that does not?"""

from __future__ import annotations

import dataclasses
import json

import pytest
from etils import epath

from ste_jax.commands.judge_options import JudgeOptions, card_of
from ste_jax.config.schema import Config, RoleKnobs, RoleSet, SamplingKnobs
from ste_jax.model_io.sources import Source
from ste_jax.model_io.stored_judge_card import stored_judge_card
from ste_jax.run.best import locate
from ste_jax.stages import judge_card
from ste_jax.system.errors import RequestError
from tests import tiny


def hf(directory) -> Source:
    return Source(kind="hf", path=epath.Path(directory), name="judge")


def test_a_model_without_a_card_is_asked_as_a_run_asks_its_seed(tmp_path):
    usual = judge_card.of_config(Config(model="m"))
    assert judge_card.default() == usual
    options = JudgeOptions(model="somewhere", votes=3)
    asked = card_of(hf(tiny.write_model(tmp_path)), options)
    # What the config leaves open is worked out from the model: a quarter of its context of 512.
    sampling = dataclasses.replace(usual.sampling, max_new_tokens=128)
    assert asked == dataclasses.replace(usual, sampling=sampling)


def test_a_card_comes_back_from_a_file_as_it_was(tmp_path):
    sampling = SamplingKnobs(temperature=1, max_new_tokens=7, stop=("]]",))
    roles = RoleSet(judge=RoleKnobs(template="small-judge", sampling=sampling))
    card = judge_card.of_config(Config(model="m", roles=roles))
    tiny.write_model(tmp_path)
    (tmp_path / judge_card.FILE).write_text(json.dumps(judge_card.to_dict(card)))
    assert stored_judge_card(hf(tmp_path)) == card
    greedy = dataclasses.replace(sampling, temperature=0.0)  # a single vote, unless told otherwise
    assert card_of(hf(tmp_path), JudgeOptions(model="x")).sampling == greedy


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda card: card["sampling"].update(heat=1.0), "there is no key judge.sampling.heat"),
        (lambda card: card.update(temperature=1.0), "there is no key judge.temperature"),
        (lambda card: card["template"].pop("user"), "the key judge.template.user is missing"),
        (lambda card: card["knobs"].update(force_verdict="yes"), "must be true or false"),
        (lambda card: card.update(sampling=[]), "judge.sampling must be a group of keys"),
        (lambda card: card["template"].update(user="Say [[A]]"), "has no place {answer_a}"),
        (lambda card: card["template"].update(examples=[{}]), "example 0 lacks answer_a"),
        (lambda card: card.update(template_arguments={"messages": []}), "cannot be given that"),
    ],
)
def test_what_is_wrong_with_a_card_is_named(tmp_path, change, told):
    values = json.loads(json.dumps(judge_card.to_dict(judge_card.default())))
    change(values)
    (tmp_path / judge_card.FILE).write_text(json.dumps(values))
    with pytest.raises(RequestError, match=r"ste_judge\.json: ") as error:
        stored_judge_card(hf(tmp_path))
    assert told in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1]", '"A"', "[" * 100_000])
def test_a_file_that_is_no_card(tmp_path, text):
    (tmp_path / judge_card.FILE).write_text(text)
    with pytest.raises(RequestError, match=r"ste_judge\.json"):
        stored_judge_card(hf(tmp_path))


def test_a_run_is_asked_by_its_own_knobs_where_its_checkpoint_does_not_say(finished, monkeypatch):
    run, _ = finished
    options = JudgeOptions(model=str(run.root), votes=3)
    found = locate(options.model)
    remembered = card_of(found, options)
    monkeypatch.setattr("ste_jax.commands.judge_options.stored_judge_card", lambda _: None)
    assert card_of(found, options) == remembered != judge_card.default()
    assert remembered.template.user == " {instruction}\n {answer_a}\n {answer_b}"
