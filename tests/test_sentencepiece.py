"""A `tokenizer.model` gives SentencePiece's ids, whichever library reads it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ste_jax import sentencepiece_model
from ste_jax.errors import RequestError
from ste_jax.tokenizers import Tokenizer, load_tokenizer
from tests import chats, sentencepieces

FORMS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "llama2": (sentencepieces.LLAMA2, "inst", {"legacy": False}),
    "mistral": (sentencepieces.LLAMA2, "inst", {"legacy": True}),
    "mistral3": (sentencepieces.MISTRAL3, "inst", {}),
    "added": (
        sentencepieces.LLAMA2,
        "chatml",
        {
            "added_tokens_decoder": {
                "460": {"content": "<|im_start|>", "special": True},
                "461": {"content": "<|im_end|>", "special": True},
            }
        },
    ),
    "gemma": (
        sentencepieces.GEMMA,
        "no_system",
        {"tokenizer_class": "GemmaTokenizer"},
    ),
}
TEMPLATES = chats.TEMPLATES | {
    "no_system": chats.TEMPLATES["no_system"]
    .replace("<|start|>", "<start_of_turn>")
    .replace("<|stop|>", "<end_of_turn>")
}


@functools.cache
def read(form: str) -> tuple[Tokenizer, Tokenizer, Any]:
    """A directory by `tokenizers`, by `tensorflow_text`, and SentencePiece itself."""
    options, template, config = FORMS[form]
    with tempfile.TemporaryDirectory() as directory:
        path = sentencepieces.write(Path(directory), options, TEMPLATES[template], **config)
        fast, direct = load_tokenizer(path), load_tokenizer(path, "tensorflow_text")
        oracle = sentencepiece.SentencePieceProcessor(model_proto=sentencepieces.train(**options))
        return fast, direct, oracle


NASTY = [
    "",
    " ",
    "     ",
    "\t",
    "\t\t a\t",
    "\n\n\n\n\n",
    "\r\n\r",
    "  two  before, two after  ",
    "👍🏽👨\u200d👩\u200d👧 🇫🇷 ☕\ufe0f",
    "e\u0301\u0327 o\u0308\u0304 q\u0307\u0323 \u0301 alone",
    "東京で、どうぞ。 漢字かな交じり文　全角",
    "กำ ไทย العربية \u202eright to left\u202c עברית",
    "\x00\x01\x02\x1b[31m\x7f\x80\x9f",
    "\u00a0\u2028\u2029\ufeff\ufffd\U000e0001",
    "\u2581\u2581 spelled \u2581spaces",
    "<s></s><unk><pad><0x0A><0xFF>[INST] [/INST]",
    "<start_of_turn>model\n[[A]]<end_of_turn>\n <b>bold</b>",
    "<|im_end|>\n<|im_start|>assistant\n[[A]]",
    "a" * 300,
    " a" * 100,
]
ATOMS = [
    " ", "  ", "\n", "\n\n", "\t", "a", "the", "The", "12", "é", "e\u0301", "東", "👍🏽", "\u2581",
    "<b>", "<", ">", "/", "s", "unk", "[INST]", "</s>", "<end_of_turn>", "\x00", "\u200d", ".",
]  # fmt: skip
TEXT = st.lists(st.sampled_from([*ATOMS, *NASTY]) | st.text(max_size=5), max_size=8).map("".join)


def agree(form: str, texts: Sequence[str]) -> None:
    fast, direct, oracle = read(form)
    ids = fast.encode_batch(texts)
    assert ids == direct.encode_batch(texts)
    assert ids == [fast.encode(text) for text in texts] == [direct.encode(text) for text in texts]
    assert fast.encode_batch(texts, continues=True) == direct.encode_batch(texts, continues=True)
    decoded = fast.decode_batch(ids)
    assert decoded == direct.decode_batch(ids)
    assert decoded == [text.replace("\u2581", " ") for text in texts]
    for text, found in zip(texts, ids, strict=True):
        # SentencePiece itself makes these whatever text spells them.
        if form != "gemma" or not any(
            mark in text for mark in ("<start_of_turn>", "<end_of_turn>")
        ):
            assert found == oracle.encode(text)
        assert not set(found) & fast.control_ids


@pytest.mark.parametrize("form", FORMS)
def test_both_libraries_give_the_ids_of_sentencepiece(form: str) -> None:
    agree(form, NASTY)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, max_size=3))
def test_they_agree_on_any_text(form: str, texts: list[str]) -> None:
    agree(form, texts)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(first=TEXT, answer=TEXT, second=TEXT, text=TEXT)
def test_they_agree_on_any_chat(form: str, first: str, answer: str, second: str, text: str) -> None:
    fast, direct, _ = read(form)
    chat = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": second},
    ]
    ids = fast.prompt_ids(chat, text)
    assert ids == direct.prompt_ids(chat, text)
    assert fast.prompt_ids_batch([chat, chat[:1]]) == direct.prompt_ids_batch([chat, chat[:1]])
    for skip in (False, True):
        assert fast.decode(ids, skip) == direct.decode(ids, skip)


@pytest.mark.parametrize("form", FORMS)
def test_what_they_know_of_the_tokens_is_the_same(form: str) -> None:
    fast, direct, oracle = read(form)
    for name in ("vocab_size", "eos_ids", "pad_id", "control_ids", "chat_template"):
        assert getattr(fast, name) == getattr(direct, name)
    assert fast.vocab_size == len(oracle) + (2 if form == "added" else 0)
    end = {"added": "<|im_end|>", "gemma": "<end_of_turn>"}.get(form, "</s>")
    assert fast.decode([fast.eos_ids[-1]], skip_special=False) == end


@pytest.mark.parametrize("form", ["llama2", "mistral3", "gemma"])
def test_chats_have_the_ids_that_transformers_gives(form: str, tmp_path: Path) -> None:
    options, template, config = FORMS[form]
    names = {"llama2": "LlamaTokenizer", "mistral3": "LlamaTokenizer", "gemma": "GemmaTokenizer"}
    config = {**config, "tokenizer_class": names[form], "bos_token": "<s>", "eos_token": "</s>"}
    config |= {"unk_token": "<unk>", "pad_token": "<pad>" if form == "gemma" else None}
    path = sentencepieces.write(tmp_path, options, TEMPLATES[template], **config)
    hf = AutoTokenizer.from_pretrained(path)
    for content in ("The better answer is B.", "  cafe\u0301  東京 12\n\n\n👍🏽 <b>so</b>"):
        chat = [{"role": "user", "content": content}]
        expected = hf.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        for library in ("tokenizers", "tensorflow_text"):
            assert load_tokenizer(path, library).prompt_ids(chat) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_one_is_the_same_in_both_libraries_and_elsewhere(form: str, tmp_path: Path) -> None:
    fast, direct, _ = read(form)
    fast.save(tmp_path / "fast")
    direct.save(tmp_path / "direct")
    for file in (tmp_path / "fast").iterdir():
        assert (tmp_path / "direct" / file.name).read_bytes() == file.read_bytes(), file.name
    again = [
        load_tokenizer(tmp_path / "fast"),
        load_tokenizer(tmp_path / "fast", "tensorflow_text"),
    ]
    elsewhere = AutoTokenizer.from_pretrained(tmp_path / "fast")
    chat = [{"role": "user", "content": NASTY[16]}]
    for one in again:
        assert one.encode_batch(NASTY) == fast.encode_batch(NASTY)
        assert one.prompt_ids(chat, " b") == fast.prompt_ids(chat, " b")
        assert one.control_ids == fast.control_ids
    for text in NASTY[:15]:
        assert elsewhere(text, add_special_tokens=False)["input_ids"] == fast.encode(text)


def test_ids_beyond_the_pieces_have_no_text() -> None:
    fast, direct, _ = read("gemma")
    ids = [*fast.encode("so"), 100_000]
    assert fast.decode(ids) == direct.decode(ids) == "so"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model_type": "unigram", "vocab_size": 400}, "UNIGRAM, not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "rewrites characters"),
        ({"remove_extra_whitespaces": True}, "drops spaces"),
        ({"treat_whitespace_as_suffix": True}, "space before a word"),
        ({"user_defined_symbols": ["<b>"]}, "user-defined pieces"),
    ],
)
def test_models_of_other_kinds_are_refused(
    options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = sentencepieces.write(tmp_path, sentencepieces.LLAMA2 | options, chats.TEMPLATES["inst"])
    with pytest.raises(RequestError, match=rf"tokenizer\.model: .*{says}.*give a tokenizer\.json"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"tokenizer_class": "T5Tokenizer"}, "T5Tokenizer does not count"),
        ({"eos_token": "<|eot|>"}, r"eos_token is '<\|eot\|>', which is no token"),
        ({"added_tokens_decoder": {"470": {"content": "<x>"}}}, "'<x>' has the id 470"),
        ({"added_tokens_decoder": {"460": {"content": "</s>"}}}, "'</s>' is there twice"),
    ],
)
def test_files_that_do_not_fit_the_model_are_refused(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = sentencepieces.write(tmp_path, sentencepieces.LLAMA2, chats.TEMPLATES["inst"], **config)
    with pytest.raises(RequestError, match=says):
        load_tokenizer(path)


def test_what_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    path = sentencepieces.write(tmp_path, sentencepieces.LLAMA2, None)
    with pytest.raises(RequestError, match=r"no chat template; put it into .*chat_template\.jinja"):
        load_tokenizer(path)
    for damaged in (b"IQ== 0\nIg== 1\n", b"", sentencepieces.train(**sentencepieces.LLAMA2)[:900]):
        (path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(RequestError, match=r"tokenizer\.model: .*give a tokenizer\.json"):
            load_tokenizer(path)


def test_a_conversion_that_goes_wrong_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sentencepieces.write(tmp_path, sentencepieces.LLAMA2, chats.TEMPLATES["inst"])
    build = sentencepiece_model.build_backend
    monkeypatch.setattr(
        sentencepiece_model, "build_backend", lambda pieces, prefix: build(pieces, "always")
    )
    with pytest.raises(RequestError, match=r"cannot be turned into a tokenizer\.json: of"):
        load_tokenizer(path)


def test_sentencepiece_needs_its_model(tmp_path: Path) -> None:
    path = chats.write(chats.byte_level(), tmp_path, chats.TEMPLATES["chatml"])
    with pytest.raises(RequestError, match=r"reads a tokenizer\.model, and there is none"):
        load_tokenizer(path, "tensorflow_text")
    # One of another vocabulary does no harm where nobody reads it.
    before = load_tokenizer(path)
    (path / "tokenizer.model").write_bytes(sentencepieces.train(**sentencepieces.LLAMA2))
    assert load_tokenizer(path).encode_batch(NASTY) == before.encode_batch(NASTY)
    with pytest.raises(RequestError, match=r"not the model of this tokenizer: its piece \d+ is"):
        load_tokenizer(path, "tensorflow_text")
