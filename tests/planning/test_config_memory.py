"""Do the configs that are written for a device fit it, and say in a comment by how much?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import config_memory
from ste_jax.commands.proposal import PACES, hours_of
from ste_jax.config.fitting import ROLES, Sizes, fit
from ste_jax.config.load import load_config, shipped_configs
from ste_jax.planning.compile import missing_libtpu
from ste_jax.planning.config_memory import DEVICES, Need

ROOT = Path(config_memory.__file__).parents[1]
MODELS = ("llama-3.1-8b", "qwen3-8b", "gemma-3-12b")
NAMES = [f"{model}-{device}" for model in MODELS for device in DEVICES]
FIGURE = re.compile(
    r"#   ([a-z ]+): ([0-9.]+) GB, ([0-9.]+) of arrays(?: and ([0-9.]+) beside them)?"
)
GB = 1e9


def stated(name: str) -> dict[str, Need]:
    """The figures in a config's comment, by what they are of."""
    lines = shipped_configs()[name].read_text().splitlines()
    found = [match for line in lines if (match := FIGURE.fullmatch(line))]
    return {
        what: Need(what=what, kept=GB * float(kept), beside=GB * float(beside or 0))
        for what, _, kept, beside in (match.groups() for match in found)
    }


def test_there_is_a_config_for_each_model_and_device() -> None:
    assert sorted(config_memory.names()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_config_keeps_is_planned_from_its_shapes_and_stated(name: str) -> None:
    plan = config_memory.plan_of(name, devices=jax.devices())
    kept, figures = {need.what: need for need in plan.needs(compiled=False)}, stated(name)
    assert list(figures) == list(kept)
    for what, need in kept.items():
        # The compiler may lay an array out with a little more.
        assert figures[what].kept == pytest.approx(need.kept, rel=0.04, abs=0.1 * GB)
        assert need.kept - 0.1 * GB < figures[what].bytes <= plan.device.bytes
    assert figures["training step"].beside > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_config_fits_its_model(name: str) -> None:
    config = load_config(name)
    shape = config_memory.shape_of(config.model)
    sizes = Sizes(
        context=shape.max_position,
        templates=dict.fromkeys(ROLES, 400),
        marks=8,
        force_text=8,
    )
    assert fit(config, sizes) == config  # nothing is left open, and nothing can never fit
    longest = config.decoding.prompt_buckets[-1]
    answers = 2 * config.roles.respond.sampling.max_new_tokens
    assert 400 + config.pool.max_chars / 3 + answers <= longest


@pytest.mark.parametrize("name", NAMES)
def test_the_head_of_a_config_says_how_long_it_takes_and_who_may_have_the_model(name: str) -> None:
    config, text = load_config(name), shipped_configs()[name].read_text()
    head = " ".join(text.partition("\nname: ")[0].replace("#", " ").split())
    device = next(device for device in DEVICES if name.endswith(device))
    parameters = config_memory.shape_of(config.model).parameter_count()
    (stated,) = re.findall(r"takes about ([0-9.]+) hours", head)
    assert float(stated) == pytest.approx(hours_of(config, parameters, PACES[device]), rel=0.07)
    page = config.model.replace("hf:", "huggingface.co/")
    assert (f"accept its terms at {page}, then `hf auth login`" in head) == ("qwen" not in name)
    assert bool(config.finetune.lora.rank) == (config.finetune.learning_rate == 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_programs_of_a_config_fit_as_stated(name: str) -> None:
    if why := missing_libtpu():
        pytest.skip(why)
    done = subprocess.run(
        [sys.executable, "benchmarks/config_memory.py", name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    if "another process of this machine is using libtpu" in done.stdout + done.stderr:
        pytest.skip("another process of this machine is using libtpu")
    assert done.returncode == 0, done.stdout + done.stderr
    text = shipped_configs()[name].read_text()
    for line in done.stdout.splitlines()[1:]:
        assert f"#   {line.strip()}" in text.splitlines()


def test_a_program_that_does_not_fit_is_named() -> None:
    need = Need(what="training step", kept=10 * GB, beside=7 * GB)
    assert config_memory.line(need, 18 * GB) == (
        "training step: 17.0 GB, 10.0 of arrays and 7.0 beside them"
    )
    assert config_memory.line(need, 16 * GB).endswith("TOO MUCH")
