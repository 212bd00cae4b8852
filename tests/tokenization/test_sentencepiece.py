"""A `tokenizer.model` gives SentencePiece's ids, whichever library reads it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ste_jax.system.errors import RequestError
from ste_jax.tokenization import sentencepiece_model
from ste_jax.tokenization.load import load_tokenizer
from ste_jax.tokenization.sentencepiece_model import SPACE
from ste_jax.tokenization.tokenizer import Library, Tokenizer
from tests import chats, sentencepieces

LIBRARIES = get_args(Library)
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
                "462": {"content": "<think>", "special": False},
                "463": {"content": "<thinking>", "special": False},
            }
        },
    ),
    "gemma": (
        sentencepieces.GEMMA,
        "no_system",
        {
            "tokenizer_class": "GemmaTokenizer",
            "added_tokens_decoder": {
                str(3 + number): {"content": text, "special": text.endswith("turn>")}
                for number, text in enumerate(sentencepieces.GEMMA["user_defined_symbols"], start=1)
                if SPACE not in text
            },
            "additional_special_tokens": ["<start_of_image>"],
        },
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
        fast, direct = (sentencepieces.read(path, library) for library in LIBRARIES)
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
    "<start_of_turn>model\n[[A]]<end_of_turn>\n <b>bold</b> <start_of_image>",
    "<think> a</think>b<thinking>  c<think><think>",
    "<|im_end|>\n<|im_start|>assistant\n[[A]]",
    "a" * 300,
    " a" * 100,
]
ATOMS = [
    " ", "  ", "\n", "\n\n", "\t", "a", "the", "The", "12", "é", "e\u0301", "東", "👍🏽", "\u2581",
    "<b>", "<think>", "<start_of_image>", "<", ">", "/", "s", "unk", "[INST]", "</s>",
    "<end_of_turn>", "\x00", "\u200d", ".",
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
        # SentencePiece itself makes these whatever text spells them, or knows nothing of them.
        if not any(mark in text for mark in ("_of_turn>", "<start_of_image>", "<think")):
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
    assert fast.vocab_size == len(oracle) + (4 if form == "added" else 0)
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
        for library in LIBRARIES:
            assert sentencepieces.read(path, library).prompt_ids(chat) == expected


@pytest.mark.parametrize("form", FORMS)
def test_completions_are_decoded_as_transformers_does(form: str, tmp_path: Path) -> None:
    fast, direct, _ = read(form)
    fast.save(tmp_path)
    hf = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["It is so.", " [[A]]", "", "<b>x</b>\n\n\ny", "東京 👍🏽"]
    completions = [[*ids, fast.eos_ids[-1]] for ids in fast.encode_batch(texts)]
    if form == "added":
        think = fast.vocab_size - 2
        completions.append([think, *fast.encode("hm", continues=True), think])
        texts.append("<think>hm<think>")
    expected = hf.batch_decode(completions, skip_special_tokens=True)
    assert fast.decode_batch(completions) == direct.decode_batch(completions) == expected
    assert expected == texts


def test_a_mark_that_no_file_calls_special_ends_a_turn_all_the_same(tmp_path: Path) -> None:
    template = TEMPLATES["no_system"]
    for library in LIBRARIES:
        path = sentencepieces.write(tmp_path, sentencepieces.GEMMA, template)
        tokenizer = sentencepieces.read(path, library)
        ids = tokenizer.encode("Yes. [[A]]")
        assert tokenizer.decode([*ids, tokenizer.eos_ids[-1]]) == "Yes. [[A]]"
        whole = tokenizer.decode([*ids, tokenizer.eos_ids[-1]], skip_special=False)
        assert whole == "Yes. [[A]]<end_of_turn>"
        assert tokenizer.pad_id == 0


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
        ({"added_tokens_decoder": {"x": {"content": "<x>"}}}, "added_tokens_decoder has 'x'"),
        ({"added_tokens_decoder": {"460": {"special": True}}}, "added_tokens_decoder has '460'"),
        ({"added_tokens_decoder": {"460": 7}}, "added_tokens_decoder has '460': 7"),
        ({"added_tokens_decoder": ["<x>"]}, "added_tokens_decoder has ''"),
        ({"bos_token": 3}, "bos_token is 3, and not a token's text"),
        ({"chat_template": [{"x": 1}]}, "chat_template is neither"),
    ],
)
def test_files_that_do_not_fit_the_model_are_refused(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    template = None if "chat_template" in config else chats.TEMPLATES["inst"]
    path = sentencepieces.write(tmp_path, sentencepieces.LLAMA2, template, **config)
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
    with pytest.raises(RequestError, match=r"tokenizer\.model: of .* SentencePiece makes"):
        load_tokenizer(path, "tensorflow_text")


def test_a_conversion_is_checked_by_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sentencepieces.write(tmp_path / "m", sentencepieces.LLAMA2, chats.TEMPLATES["inst"])
    code = "from ste_jax.tokenization.load import load_tokenizer as load; "
    code += f"load({str(path)!r}); "
    code += "import sys; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    (tmp_path / "tensorflow_text.py").write_text("raise ImportError('not for this machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    told = r"/m: .*tensorflow-text, which cannot be imported \(not for this machine\)"
    with pytest.raises(RequestError, match=told):
        load_tokenizer(path)


def test_files_of_two_tokenizers_are_told_apart(tmp_path: Path) -> None:
    fast, _, _ = read("llama2")
    fast.save(tmp_path)
    # The same pieces, and a space before every stretch: another tokenizer.
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": True}))
    chat = [{"role": "user", "content": "Hi"}]
    assert load_tokenizer(tmp_path).prompt_ids(chat) == fast.prompt_ids(chat)
    with pytest.raises(RequestError, match=r"tokenizer\.model: of .* SentencePiece makes"):
        load_tokenizer(tmp_path, "tensorflow_text")
    # A piece more than the model has.
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["model"]["vocab"]["betterbetter"] = len(values["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(RequestError, match=r"not the model of this tokenizer: it has no piece"):
        load_tokenizer(tmp_path, "tensorflow_text")


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
