"""A judge goes out as a Hugging Face directory and comes back as it was."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ste_jax
from ste_jax.checkpoints.card import CARD, read_card
from ste_jax.checkpoints.checkpoint import load_checkpoint
from ste_jax.cli import main
from ste_jax.commands.export_model import export_model
from ste_jax.commands.judge_options import JudgeOptions, card_of
from ste_jax.commands.model_card import model_card
from ste_jax.config.schema import Config, JudgeKnobs, MeshKnobs
from ste_jax.model_io.load_weights import load_weights
from ste_jax.model_io.sources import resolve
from ste_jax.model_io.stored_judge_card import stored_judge_card
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.sharding import make_mesh
from ste_jax.records import Instruction, make_pair
from ste_jax.stages import judge_card
from ste_jax.system.errors import RequestError
from ste_jax.tasks.pairwise import PAIRWISE
from ste_jax.tokenization.load import load_tokenizer
from tests import tiny
from tests.golden import archive
from tests.models.reference import our_logits, torch_logits
from tests.reports import REPORTS

ONE = make_mesh(MeshKnobs(), jax.devices()[:1])


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """(the last judge's checkpoint, the directory that it was exported to)."""
    run, _ = finished
    directory = tmp_path_factory.mktemp("exported") / "judge"
    checkpoint = run.iterations()[-1].checkpoint
    assert main(["export", str(checkpoint), str(directory)]) == 0
    return checkpoint, directory


def test_transformers_reads_it_and_computes_the_same(exported):
    checkpoint, directory = exported
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    assert theirs.dtype == torch.float32
    ours = load_checkpoint(checkpoint, ONE)
    tokens = np.random.default_rng(0).integers(4, ours.config.vocab_size, (2, 30))
    np.testing.assert_allclose(our_logits(ours, tokens), torch_logits(theirs, tokens), atol=1e-4)
    assert theirs.generation_config.eos_token_id == list(load_tokenizer(directory).eos_ids)
    assert theirs.config.eos_token_id == list(load_tokenizer(directory).eos_ids)


def test_a_prompt_is_the_same_there(exported):
    checkpoint, directory = exported
    messages = [{"role": "user", "content": " apple bread chair"}]
    theirs = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    assert load_tokenizer(checkpoint / "tokenizer").prompt_ids(messages) == list(theirs)


def test_it_comes_back_bit_for_bit(exported, tmp_path):
    checkpoint, directory = exported
    there = str(tmp_path / "again")
    assert main(["import", str(directory), there, "--dtype", "float32"]) == 0
    ours, back = (parameters_of(load_checkpoint(each, ONE)) for each in (checkpoint, there))
    assert ours.keys() == back.keys()
    assert all(np.array_equal(ours[path], back[path]) for path in ours)


def test_it_is_asked_there_as_it_was_trained(exported, tmp_path):
    checkpoint, directory = exported
    asked = stored_judge_card(resolve(str(checkpoint)))
    assert asked is not None and asked != judge_card.default()
    assert stored_judge_card(resolve(str(directory))) == asked
    options = JudgeOptions(model=str(directory), votes=3)
    assert card_of(resolve(str(directory)), options) == asked
    # and so it is once it was read back, or exported again
    there, again = str(tmp_path / "checkpoint"), str(tmp_path / "again")
    assert main(["import", str(directory), there]) == 0
    export_model(str(directory), again, REPORTS)
    for place in (there, again):
        assert stored_judge_card(resolve(place)) == asked
    assert "How it is asked" in (tmp_path / "again" / "README.md").read_text()


def test_the_card_states_seed_recipe_data_and_accuracies(exported, finished):
    run, _ = finished
    _, directory = exported
    text = (directory / "README.md").read_text()
    here = run.iterations()[-1]
    assert "iteration 2 of the run `tiny`" in text
    assert str(run.root.parent / "model") in text
    kept = json.loads(here.curation.read_text())["kept"]
    assert f"{sum(kept.values()):,} judgments" in text
    accuracy = json.loads(here.evaluation.read_text())["accuracy"]
    assert f"{accuracy:.3f} [" in text
    assert "verdict" in text and "learning_rate: 0.005" in text
    assert "| iteration 2: kept for training |" in text
    n = json.loads(here.evaluation.read_text())["n"]
    assert f"On {n:,} pairs that the run made" in text
    assert "pipeline_tag: text-generation" in text
    # the tiny seed states no licence, and none is made up
    assert "license" not in text and "look it up" in text


def test_the_card_of_a_judge_that_is_not_measured_yet_says_so(tmp_path):
    here = archive.unpack("plain", tmp_path) / "run/iterations/2"
    judge = resolve(str(here / "checkpoint"))
    provenance = read_card(judge.path)["provenance"]
    missing = "This judge itself had not been measured yet."
    assert missing not in model_card("judge", judge, provenance, REPORTS)
    (here / "evaluation.json").unlink()
    card = model_card("judge", judge, provenance, REPORTS)
    assert missing in card and "| 1 |" in card
    for index in (0, 1):
        (here.parent / f"{index}/evaluation.json").unlink()
    assert "## Measured" not in model_card("judge", judge, provenance, REPORTS)


def test_the_python_of_the_card_asks_as_ste_does(exported, capsys):
    checkpoint, directory = exported
    names = of_the_card(directory)
    verdict = {None, "one", "other"}
    assert {str(each) for each in verdict} >= set(capsys.readouterr().out.split())
    assert names["better"](" apple bread", one=" river", other=" stone") in verdict
    pair = make_pair(
        Instruction(id="i", messages=[{"role": "user", "content": " apple bread"}], source=""),
        chosen=" river stone",
        rejected=" amber",
        modified_instruction="",
        source="",
    )
    values = {"instruction": " apple bread", "answer_a": " river stone", "answer_b": " amber"}
    (ours, _) = PAIRWISE.prompts(pair, stored_judge_card(resolve(str(directory))).template)
    assert names["prompt"](**values) == [dict(turn) for turn in ours.messages]
    ids = names["tokenizer"].apply_chat_template(
        names["prompt"](**values), add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert load_tokenizer(checkpoint / "tokenizer").prompt_ids(ours.messages) == list(ids)
    # what the model says by `transformers` is what it says by the engine
    judge = ste_jax.load_judge(directory)
    theirs = names["reply"](names["prompt"](**values))
    ours = judge(" apple bread", " river stone", " amber").judgments[0]
    assert ours.text.removesuffix("<|im_end|>").startswith(theirs) or ours.forced


def of_the_card(directory):
    """What the Python of a card defines, once it has run."""
    code = re.search(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)[1]
    assert f'PLACE = "{directory.name}"' in code
    names: dict = {}
    code = code.replace(f'"{directory.name}"', repr(str(directory)))
    exec(compile(code, "the card", "exec"), names)
    return names


def test_worked_examples_and_a_start_are_asked_by_the_card_too(tmp_path, capsys):
    tiny.write_model(tmp_path / "seed")
    card = judge_card.default()
    template = PAIRWISE.load_template("small-judge")
    sampling = dataclasses.replace(card.sampling, max_new_tokens=4)
    card = dataclasses.replace(card, template=template, sampling=sampling)
    text = json.dumps(judge_card.to_dict(card))
    (tmp_path / "seed" / judge_card.FILE).write_text(text)
    export_model(str(tmp_path / "seed"), str(tmp_path / "judge"), REPORTS)
    names = of_the_card(tmp_path / "judge")
    assert names["better"].__doc__ in (tmp_path / "judge" / "README.md").read_text()
    values = {"instruction": " apple", "answer_a": " river", "answer_b": " amber"}
    turns = names["prompt"](**values)
    ours = template.messages((), **values)
    assert turns[:-1] == [dict(turn) for turn in ours]
    assert turns[-1] == {"role": "assistant", "content": template.start}


def test_a_pointwise_judge_is_asked_for_scores(tmp_path, capsys):
    tiny.write_model(tmp_path / "seed")
    card = judge_card.of_config(Config(model="m", judge=JudgeKnobs(task="pointwise")))
    sampling = dataclasses.replace(card.sampling, max_new_tokens=4)
    text = json.dumps(judge_card.to_dict(dataclasses.replace(card, sampling=sampling)))
    (tmp_path / "seed" / judge_card.FILE).write_text(text)
    export_model(str(tmp_path / "seed"), str(tmp_path / "judge"), REPORTS)
    names = of_the_card(tmp_path / "judge")
    assert capsys.readouterr().out.split() == ["None", "None"]  # no word of the model is a number
    names["reply"] = lambda turns: "Right. [[9]]"
    assert names["score"]("Two and three?", "Five.") == 9


def test_others_may_read_what_was_written(exported, tmp_path):
    _, directory = exported
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    written = [directory, *directory.iterdir()]
    assert len(written) > 6
    modes = {each.name: oct(each.stat().st_mode) for each in written if each.is_file()}
    assert modes == dict.fromkeys(modes, oct(usual))


def test_a_run_means_its_best_and_a_seed_is_said_to_be_one(finished, tmp_path):
    run, _ = finished
    told = export_model(str(run.root), str(tmp_path / "best"), REPORTS, "bfloat16")
    assert "in bfloat16" in told
    assert "of the run `tiny`" in (tmp_path / "best" / "README.md").read_text()
    export_model("pico", str(tmp_path / "pico"), REPORTS)
    card = (tmp_path / "pico" / "README.md").read_text()
    assert "The model `pico` in the Hugging Face format" in card and "judgments" not in card
    again, shipped = (
        parameters_of(load_weights(resolve(each), ONE)) for each in (str(tmp_path / "pico"), "pico")
    )
    assert all(np.array_equal(again[path], shipped[path]) for path in shipped)


def test_a_model_without_a_form_is_refused_before_it_is_read(exported, tmp_path, monkeypatch):
    checkpoint, _ = exported
    card = json.loads((checkpoint / CARD).read_text())
    scaling = {"kind": "factors", "factors": [1.0] * (card["model"]["head_dim"] // 2)}
    card["model"]["kinds"][0]["rope_scaling"] = scaling
    monkeypatch.setattr("ste_jax.commands.export_model.read_card", lambda _: card)
    monkeypatch.setattr(
        "ste_jax.commands.export_model.open_model", lambda *_, **__: pytest.fail("read")
    )
    with pytest.raises(RequestError, match="rope scaling by a table of factors"):
        export_model(str(checkpoint), str(tmp_path / "out"), REPORTS)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_leaves_nothing(exported, tmp_path, capsys):
    checkpoint, directory = exported
    assert main(["export", str(checkpoint), str(directory)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    (tmp_path / "file").write_text("")
    assert main(["export", str(checkpoint), str(tmp_path / "file" / "out")]) == 1
    assert "could not write" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
