"""How does a model that the user named become one that can be asked or trained?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ste_jax.checkpoints.card import CARD, TOKENIZER, read_card
from ste_jax.checkpoints.checkpoint import load_checkpoint
from ste_jax.config.schema import DecodingKnobs, MeshKnobs
from ste_jax.decoding.generator import LocalGenerator
from ste_jax.generation import Message
from ste_jax.model_io.load_weights import load_weights, open_weights
from ste_jax.model_io.sources import Source
from ste_jax.models.config import ModelConfig
from ste_jax.models.decoder import Decoder
from ste_jax.parallel.sharding import make_mesh
from ste_jax.system import hashing, progress
from ste_jax.system.errors import RequestError, SteError
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.tokenizer import NO_ARGUMENTS, Tokenizer


@dataclass(frozen=True)
class Opened:
    """A model on its devices, with its tokenizer."""

    model: Decoder
    tokenizer: Tokenizer
    mesh: Mesh


def open_model(
    source: Source,
    mesh: MeshKnobs,
    *,
    dtype: str,
    param_dtype: str,
    devices: Sequence[jax.Device] | None = None,
) -> Opened:
    """Load a model of any accepted kind onto `devices` (default: all, of every process).

    Raises:
      RequestError: what is there cannot be read as a model; names the file or tensor.
    """
    placed = make_mesh(mesh, devices)
    kinds: dict[str, Any] = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
    # of a run's checkpoint: iterations/1/checkpoint
    name = source.name if source.kind != "checkpoint" else "/".join(source.path.parts[-3:])
    with progress.doing(f"reading the weights of {name}"):
        if source.kind == "checkpoint":
            model = load_checkpoint(source.path, placed, **kinds)
            tokenizer = load_tokenizer(str(source.path / TOKENIZER))
        else:
            model = load_weights(source, placed, **kinds)
            tokenizer = load_tokenizer(str(source.path))
    check_vocabulary(tokenizer, model.config, str(source.path))
    return Opened(model, tokenizer, placed)


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, where: str) -> None:
    """Raises `RequestError` where the tokenizer writes ids of which the model has no embedding."""
    text, token_id = tokenizer.widest
    if token_id >= config.vocab_size:
        raise RequestError(
            f"{where}: the tokenizer or its chat template writes {text!r} as the id {token_id}, "
            f"and the model has embeddings of {config.vocab_size} ids alone; give the tokenizer "
            "that belongs to the model"
        )


def look_at(found: Source) -> tuple[ModelConfig, Tokenizer]:
    """A model's shape and its tokenizer, without its weights.

    Raises:
      RequestError: what is there cannot be read as a model.
    """
    if found.kind == "checkpoint":
        card = read_card(found.path)
        shape = ModelConfig.from_dict(card["model"], str(found.path / CARD))
        return shape, load_tokenizer(str(found.path / TOKENIZER))
    return open_weights(found).config, load_tokenizer(str(found.path))


def longest_prompt(
    tokenizer: Tokenizer,
    chats: Iterable[Sequence[Message]],
    start: str = "",
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> int:
    """How many tokens the longest of some chats has as a prompt.

    A chat that cannot be asked counts for none. `arguments` are those of the chat template.
    """
    longest = 0
    for chat in chats:
        try:
            longest = max(longest, len(tokenizer.prompt_ids(chat, start, arguments)))
        except SteError:  # whoever asks it will read of it
            continue
    return longest


def open_generator(source: Source, knobs: DecodingKnobs) -> LocalGenerator:
    """A model on this process's own devices, ready to be asked."""
    opened = open_model(
        source, knobs.mesh, dtype=knobs.dtype, param_dtype=knobs.dtype, devices=jax.local_devices()
    )
    return LocalGenerator(opened.model, opened.tokenizer, knobs, opened.mesh)


def source_fingerprint(source: Source) -> str:
    """A hash that tells one model's files from another's.

    A checkpoint of ours has its arrays' checksums in its card. Other files are read whole up to
    1 GiB; of larger ones, to be quick, 64 KiB at both ends and every 16 MiB between, so a change of
    less than 16 MiB in a row may stay unseen."""
    digest = hashing.hasher()
    if source.kind == "checkpoint":
        card = read_card(source.path)
        digest.update(json.dumps([card["model"], card["parameters"]], sort_keys=True).encode())
        for path in sorted((source.path / TOKENIZER).iterdir()):
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
        return digest.hexdigest()
    root = Path(os.fspath(source.path))
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    for path in paths:
        size = path.stat().st_size
        name = path.name if path == root else str(path.relative_to(root))
        digest.update(f"{name}\0{size}\0".encode())
        with path.open("rb") as file:
            stride = _PIECE if size <= _WHOLE else _STRIDE
            for place in (*range(0, size, stride), max(0, size - _PIECE)):
                file.seek(place)
                digest.update(file.read(_PIECE))
    return digest.hexdigest()


_PIECE, _STRIDE, _WHOLE = 1 << 16, 1 << 24, 1 << 30
