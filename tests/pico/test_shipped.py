"""Is what the package brings along what its makers and its config say?"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from etils import epath
from safetensors import safe_open

from ste_jax.config.load import load_config
from ste_jax.evaluation.readers import read_pairs
from ste_jax.model_io import sources
from ste_jax.model_io.open_model import open_generator
from ste_jax.model_io.sources import resolve
from ste_jax.pico import corpus, make_seed
from ste_jax.pico.skills import SAMPLING, measure_skills
from ste_jax.pico.tokenizer import make_tokenizer
from ste_jax.system.errors import RequestError
from ste_jax.system.shipped import path_of

CONFIG = load_config("pico")


@pytest.fixture(scope="module")
def seed() -> Path:
    """The directory of the shipped model."""
    return Path(sources.resolve("pico").path)


def test_the_config_asks_as_the_seed_was_taught_and_measured() -> None:
    assert tuple(CONFIG.select.categories) == corpus.ALL_CATEGORIES
    for role, sampling in SAMPLING.items():
        if role != "check":  # no stage asks it
            knobs = getattr(CONFIG.roles, role).sampling
            greedy = role == "judge" and CONFIG.evaluate.greedy
            asked = replace(knobs, temperature=0.0) if greedy else knobs
            assert (asked.max_new_tokens, asked.temperature) == (
                sampling.max_new_tokens,
                sampling.temperature,
            )
            assert sampling.temperature == 0 or asked.top_p == sampling.top_p


def test_every_set_that_the_config_measures_on_is_read() -> None:
    for each in CONFIG.evaluate.sets:
        pairs = list(read_pairs("pairs", epath.Path(path_of(each.data))))
        assert len(pairs) >= 250
        assert all(column in json.loads(pair.extra) for pair in pairs for column in each.by)


def test_the_seed_is_small_and_in_bfloat16(seed: Path) -> None:
    assert sum(path.stat().st_size for path in seed.iterdir()) <= 10_000_000
    with safe_open(str(seed / "model.safetensors"), "np") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
    assert {each.get_dtype() for each in slices} == {"BF16"}
    assert sum(math.prod(each.get_shape()) for each in slices) <= 5_000_000


def test_its_tokenizer_is_the_one_that_the_command_makes(seed: Path) -> None:
    made = make_tokenizer(corpus.all_texts(Random("tokenizer"), make_seed.TEXTS), make_seed.LEAST)
    assert json.loads(made.to_str()) == json.loads((seed / "tokenizer.json").read_text())


@pytest.mark.usefixtures("one_device")
def test_it_plays_every_role() -> None:
    found = measure_skills(open_generator(resolve("pico"), CONFIG.decoding), "dev", 150)
    assert found["answers"] > 0.85 and found["checks"] > 0.7
    assert found["categories"] > 0.95 and found["judge_parsed"] > 0.97
    assert found["modified"] > 0.6 and found["modified_answered"] > 0.4
    assert 0.55 < found["judge"] < 0.85, "weak, but no coin"


@pytest.mark.slow
def test_its_skills_are_those_that_are_told(seed: Path) -> None:
    told = json.loads((seed / "skills.json").read_text())
    found = measure_skills(open_generator(resolve("pico"), CONFIG.decoding), "dev", make_seed.TASKS)
    assert found == pytest.approx(told, abs=0.01)


def test_its_name_means_it_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pico").mkdir()  # as in a directory of runs
    assert sources.resolve("pico").path != epath.Path("pico")
    with pytest.raises(RequestError, match="pico"):
        sources.resolve("./pico")
