"""An id that has no embedding is refused by name, and one that nobody writes may have none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

from ste_jax.commands.import_model import import_model
from ste_jax.config.schema import MeshKnobs
from ste_jax.model_io.load_weights import open_weights
from ste_jax.model_io.open_model import check_vocabulary, open_model
from ste_jax.model_io.sources import resolve
from ste_jax.system import shipped
from ste_jax.system.errors import RequestError
from ste_jax.tokenization.load import load_tokenizer
from tests import ggufs

ROWS = 539


def pico(directory: Path, special: bool, template: str = "", content: str = "<|judge|>") -> Path:
    """The embedded model with one token more than it has embeddings."""
    shutil.copytree(shipped.model_of("pico") or "", directory)
    edit(directory / "tokenizer.json", lambda values: values["added_tokens"].append(
        {
            "id": ROWS,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
    ))  # fmt: skip
    edit(
        directory / "tokenizer_config.json",
        lambda values: values.update(chat_template=template + values["chat_template"]),
    )
    return directory


def edit(file: Path, change: Any) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


def check(path: Path) -> None:
    check_vocabulary(load_tokenizer(path), open_weights(path).config, str(path))


TOLD = rf"writes '<\|judge\|>' as the id {ROWS}, and the model has embeddings of {ROWS} ids alone"


def test_a_template_that_writes_it_is_refused_wherever_a_model_is_opened(tmp_path: Path) -> None:
    path = pico(tmp_path / "m", special=True, template="<|judge|>")
    with pytest.raises(RequestError, match=TOLD) as caught:
        open_model(
            resolve(str(path)),
            MeshKnobs(),
            dtype="float32",
            param_dtype="float32",
            devices=jax.devices()[:1],
        )
    assert str(caught.value).startswith(str(path))
    with pytest.raises(RequestError, match=TOLD):
        import_model(str(path), str(tmp_path / "out"), "float32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ '<|' + 'judge|>' }}",
        "{% if add_generation_prompt %}<|judge|>{% endif %}",
        "{% if messages[0]['role'] == 'system' %}<|judge|>{% endif %}",
        "{% if messages | length > 1 %}{{ '<|jud' + 'ge|>' }}{% endif %}",
    ],
)
def test_however_the_template_comes_to_write_it(template: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=TOLD):
        check(pico(tmp_path / "m", special=True, template=template))


def test_text_that_would_be_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="writes 'verdict' as the id 539"):
        check(pico(tmp_path / "m", special=False, content="verdict"))


def test_a_control_token_that_nobody_writes_may_be_there(tmp_path: Path) -> None:
    # As Gemma 3's tokenizer has one for images, and many a Llama's one for padding.
    check(pico(tmp_path / "m", special=True))
    check(Path(shipped.model_of("pico") or ""))


def test_the_tokens_of_a_gguf_file_are_counted_too(tmp_path: Path) -> None:
    check(ggufs.write(tmp_path / "m.gguf"))
    more = [*ggufs.TOKENS, "<|judge|>"]
    check(ggufs.write(tmp_path / "unused.gguf", tokens=more))
    with pytest.raises(RequestError, match=r"unused\.gguf.*writes '<\|judge\|>' as the id 32"):
        template = ggufs.TEMPLATE + "<|judge|>"
        check(ggufs.write(tmp_path / "unused.gguf", tokens=more, template=template))
    with pytest.raises(RequestError, match=r"writes 'xy' as the id 32"):
        check(ggufs.write(tmp_path / "m.gguf", tokens=[*ggufs.TOKENS, "xy"]))


@pytest.mark.parametrize("ends", ["x", [True], -1, [2**40], 1.5, {"a": 1}])
def test_ends_that_are_no_ids_are_refused(ends: Any, tmp_path: Path) -> None:
    path = tmp_path / "m"
    shutil.copytree(shipped.model_of("pico") or "", path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(RequestError, match=r"generation_config\.json: eos_token_id is .*needed"):
        load_tokenizer(path)
