"""What a seed states of its name and licence is found wherever it is stated, and never guessed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gguf
import huggingface_hub
import pytest
import yaml

from ste_jax.checkpoints.card import CARD
from ste_jax.commands.model_card import model_card
from ste_jax.commands.origin import Origin, origin_of
from ste_jax.model_io.sources import resolve
from ste_jax.stages import judge_card
from tests import tiny
from tests.reports import REPORTS

FRONT = (
    "---\nlicense: other\nlicense_name: house\nlicense_link: LICENSE\nbase_model: X/Y\n---\n# It\n"
)


@pytest.fixture
def page(monkeypatch):
    """The hub's page of one model, in place of the hub."""

    def model_info(name, **_):
        if name != "OWNER/NAME":
            raise OSError("no network")
        data = SimpleNamespace(to_dict=lambda: {"license": "llama3.1", "tags": ["x"]})
        return SimpleNamespace(card_data=data)

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)


def test_a_model_of_the_hub(page):
    found = origin_of("hf:OWNER/NAME")
    assert found.base_model == "OWNER/NAME"
    assert found.licence == {"license": "llama3.1"}
    assert origin_of("hf:OWNER/OTHER") == Origin(
        base_model="OWNER/OTHER", stated_in="its page on the hub"
    )


def test_a_directory_states_it_in_its_card(tmp_path):
    tiny.write_model(tmp_path)
    assert origin_of(str(tmp_path)) == Origin()
    (tmp_path / "README.md").write_text(FRONT)
    found = origin_of(str(tmp_path))
    assert found.licence == {
        "license": "other",
        "license_name": "house",
        "license_link": "LICENSE",
    }
    assert found.base_model == ""  # that is what the seed began from, not the seed
    (tmp_path / judge_card.FILE).write_text("{}")  # a judge that was exported: its own seed
    assert origin_of(str(tmp_path)).base_model == "X/Y"


@pytest.mark.parametrize(
    "text", ["", "# It", "---\n[\n---\n", "---\n- 1\n---\n", "---\nlicense: 1"]
)
def test_a_card_that_states_none(tmp_path, text):
    tiny.write_model(tmp_path)
    (tmp_path / "README.md").write_text(text)
    assert not origin_of(str(tmp_path)).licence


@pytest.mark.parametrize("source", ["", "absent", "hf", "pypi:not-fetched-yet", "pypi:/", "x/y"])
def test_what_is_not_there_states_nothing_and_is_not_fetched(source, tmp_path, monkeypatch):
    monkeypatch.setenv("STE_CACHE", str(tmp_path))
    assert origin_of(source) == Origin()
    assert not list(tmp_path.iterdir())


def test_a_gguf_file_states_it_itself(tmp_path):
    write_gguf(tmp_path / "seed.gguf", {"general.license": "mit"})
    assert origin_of(str(tmp_path / "seed.gguf")).licence == {"license": "mit"}
    (tmp_path / "seed.gguf").write_bytes(b"GGUF")
    assert origin_of(str(tmp_path / "seed.gguf")) == Origin()


def write_gguf(path, texts):
    """A file of metadata alone."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, text in texts.items():
        writer.add_string(key, text)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_the_seed_of_a_seed(tmp_path):
    (tmp_path / CARD).write_text(
        json.dumps(
            {"format": 2, "model": {}, "parameters": {}} | {"provenance": {"source": "pico"}}
        )
    )
    assert origin_of(str(tmp_path)).licence == {"license": "apache-2.0"}


def test_the_card_has_it(page, tmp_path):
    directory = tiny.write_model(tmp_path / "judge")
    source = resolve(str(directory))
    provenance = {"source": "hf:OWNER/NAME", "iteration": 2, "run": "mine", "step": 7}
    provenance |= {"examples": 5, "stage": "sft"}
    text = model_card("judge", source, provenance, REPORTS)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "OWNER/NAME" and front["base_model_relation"] == "finetune"
    assert front["license"] == "llama3.1" and front["pipeline_tag"] == "text-generation"
    assert "holds for these weights: llama3.1, as stated in its page on the hub." in text
