"""Where is a tokenizer read from?

From a Hugging Face directory, from a directory that `Tokenizer.save` wrote, or from a GGUF file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from ste_jax.system import files
from ste_jax.system.errors import RequestError
from ste_jax.tokenization import sentencepiece_conversion as conversion
from ste_jax.tokenization import sentencepiece_model
from ste_jax.tokenization.gguf import read_gguf_tokenizer
from ste_jax.tokenization.sentencepiece_model import SentencePieceModel
from ste_jax.tokenization.tokenizer import SENTENCEPIECE, Library, Tokenizer

# At import `transformers` warns that PyTorch is missing; it is not needed here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

CHAT_TEMPLATE = "chat_template.jinja"
_TEXTS = (".jinja", ".json", ".model", ".txt")
"""Endings of the files that may belong to a tokenizer; weights and code have others."""


def load_tokenizer(path: str | os.PathLike[str], library: Library = "tokenizers") -> Tokenizer:
    """The tokenizer of a Hugging Face directory, a saved one, or a GGUF file.

    `path` may be local or, for a directory, remote. The chat template comes from there too; for a
    GGUF file without one, from a file `chat_template.jinja` beside it. Code that a directory brings
    along is never run. A `tokenizer.model` without a `tokenizer.json` is turned into one, which is
    checked against SentencePiece itself; so is a `tokenizer.json` where `tensorflow_text` is to
    read the model beside it. Raises `RequestError` that names what is missing or differs.
    """
    source = epath.Path(path)
    if source.is_dir():
        with tempfile.TemporaryDirectory() as near:
            for file in source.iterdir():
                if file.suffix in _TEXTS and file.is_file():
                    Path(near, file.name).write_bytes(file.read_bytes())
            return _from_directory(Path(near), str(source), library)
    if source.suffix == ".gguf" and source.exists():
        return _from_gguf(Path(source))
    raise RequestError(
        f"{source}: no tokenizer there; give a Hugging Face directory with a tokenizer.json, or a "
        ".gguf file"
    )


def _from_directory(directory: Path, name: str, library: Library) -> Tokenizer:
    names = {file.name for file in directory.iterdir()}
    model: SentencePieceModel | None
    given = bool(names & {"tokenizer.json", "vocab.json"})
    if given:
        hf = _read_hf(directory, name)
        model = sentencepiece_model.beside(directory, name)
    elif SENTENCEPIECE in names:
        found = sentencepiece_model.read_directory(directory, name)
        hf, model = _wrapped(found.backend, found.special, found.chat_template), found.model
    else:
        raise RequestError(f"{name}/tokenizer.json is missing (and so is tokenizer.model)")
    end_ids: list[int] = []
    if "generation_config.json" in names:
        generation = files.read_object(
            directory / "generation_config.json", f"{name}/generation_config.json"
        )
        ends = generation.get("eos_token_id")
        end_ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
        if any(type(end) is not int or not 0 <= end < 2**31 for end in end_ids):
            raise RequestError(
                f"{name}/generation_config.json: eos_token_id is {ends!r:.100}, ids are needed"
            )
    remedy = f"put it into {name}/{CHAT_TEMPLATE}"
    tokenizer = _with_template(hf, name, remedy, end_ids, model, library)
    if library == "tensorflow_text":
        conversion.compare(_with_template(hf, name, remedy, end_ids, model), tokenizer, name)
    elif not given:
        conversion.check(directory, name)
    return tokenizer


def _read_hf(directory: Path, name: str) -> Any:
    # Here, not above: it takes seconds to import.
    from transformers import AutoTokenizer

    try:
        hf = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    # The tokenizers library raises bare exceptions for files that it cannot read.
    except Exception as error:
        raise RequestError(f"{name}: the tokenizer cannot be read ({error})") from error
    if getattr(hf, "backend_tokenizer", None) is None:
        raise RequestError(f"{name}: a tokenizer.json is needed, or files that give one")
    return hf


def _from_gguf(file: Path) -> Tokenizer:
    found = read_gguf_tokenizer(file)
    beside = file.with_name(CHAT_TEMPLATE)
    template = found.chat_template
    if template is None and beside.exists():
        template = beside.read_text(encoding="utf-8")
    hf = _wrapped(found.backend, found.special, template)
    return _with_template(hf, str(file), f"put it into {beside}", found.end_ids)


def _wrapped(backend: Any, special: Mapping[str, str], chat_template: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, chat_template=chat_template, **special
    )


def _with_template(
    hf: Any,
    name: str,
    remedy: str,
    end_ids: Iterable[int],
    sentencepiece: SentencePieceModel | None = None,
    library: Library = "tokenizers",
) -> Tokenizer:
    try:
        template = hf.get_chat_template()
    except ValueError as error:
        raise RequestError(f"{name}: there is no chat template; {remedy}") from error
    # Of several templates the default one is kept.
    hf.chat_template = template
    try:
        return Tokenizer(hf, template, end_ids, sentencepiece, library)
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error
