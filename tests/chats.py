"""Small tokenizers of several kinds, and chat templates of several families' shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "user\nWhich answer is better, A or B? The user asks the assistant: it's the 2nd of 1024.",
    "assistant\nThe better answer is [[A]], since 12 + 30 = 42 and B's   sum isn't.\n\n\nDone.",
    "system\nBe fair. <think>\nIt says <b>so</b>…\n</think>\n\nNaïve café, 東京, 👍🏽 model user",
] * 3

CONTROL = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start|>",
    "<|stop|>",
    "[INST]",
    "[/INST]",
]
THOUGHT = ["<think>", "</think>"]
"""Added tokens that are not special, as Qwen3 has them."""


def _wrapped(backend: Tokenizer) -> Any:
    specials = [AddedToken(text, normalized=False, special=True) for text in CONTROL]
    backend.add_special_tokens(specials)
    backend.add_tokens([AddedToken(text, normalized=False) for text in (*THOUGHT, "<b>", "   ")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _train(backend: Tokenizer, kind: Any, **options: Any) -> None:
    backend.train_from_iterator(CORPUS, kind(show_progress=False, **options))


def byte_level() -> Any:
    """As SmolLM2's: digits apart, GPT-2's words, control tokens inside the vocabulary."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = ["<unk>", *CONTROL[:4]]
    _train(
        backend,
        trainers.BpeTrainer,
        vocab_size=420,
        special_tokens=tokens,
        initial_alphabet=alphabet,
    )
    return _wrapped(backend)


def whole_words() -> Any:
    """As Llama 3's, made worse: whole words are looked up in a vocabulary that has `</s>`."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(r"\S+|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(
        backend,
        trainers.BpeTrainer,
        vocab_size=420,
        special_tokens=CONTROL,
        initial_alphabet=alphabet,
    )
    backend.post_processor = processors.TemplateProcessing("<s> $0", None, [("<s>", 0)])
    return _wrapped(backend)


def _bytes_and_letters() -> dict[str, int]:
    letters = sorted(set("".join(CORPUS)) - {" "} | set("▁<>|/[]_"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    return {token: i for i, token in enumerate(tokens)}


def _sentencepiece(normalizer: Any, pre_tokenizer: Any) -> Any:
    vocab = _bytes_and_letters()
    # `</s>` can be built out of plain letters.
    merges = [("▁", "a"), ("▁", "b"), ("e", "r"), ("t", "h"), ("/", "s"), ("</", "s>")]
    merges += [("<", "/"), ("s", ">"), ("<", "s>"), ("▁", "<"), ("s", "e"), ("\n", "u"), ("▁", "▁")]
    for pair in merges:
        for token in (*pair, "".join(pair)):
            vocab.setdefault(token, len(vocab))
    backend = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _wrapped(backend)


def sentencepiece() -> Any:
    """As Llama 2's with its older settings: a space before every stretch."""
    return _sentencepiece(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None
    )


def sentencepiece_first() -> Any:
    """As Llama 2's with its newer settings: a space before the text, not after control tokens."""
    return _sentencepiece(
        normalizers.NFKC(), pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    )


def unigram() -> Any:
    """A unigram vocabulary with `<s>` and a user-defined piece among its pieces."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    _train(
        backend,
        trainers.UnigramTrainer,
        vocab_size=120,
        unk_token="<unk>",
        special_tokens=["<unk>", "<s>", "</s>", "<|im_end|>"],
    )
    return _wrapped(backend)


def words() -> Any:
    """Whole words, among them control tokens that a text can spell out as words."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    _train(backend, trainers.WordLevelTrainer, special_tokens=["<unk>", *CONTROL])
    return _wrapped(backend)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (byte_level, whole_words, sentencepiece, sentencepiece_first, unigram, words)
}

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
        "<|im_start|>system\nBe fair<|im_end|>\n{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "headers": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start|>' + m['role'] + '<|stop|>\n\n' + m['content'] | trim + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
    ),
    "inst": (
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
        "{% set turns = messages[1:] %}"
        "{% else %}{% set s = '' %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.first and s %}{% set c = '<<SYS>>\n' + s + '\n<</SYS>>\n\n' + m['content'] %}"
        "{% else %}{% set c = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}{% else %}"
        "{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "no_system": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
        "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<|start|>' + role + '\n' + m['content'] | trim + '<|stop|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}"
    ),
    "ignores_system": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] + '[/INST]' }}{% elif m['role'] == 'assistant' %}"
        "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "thinks": (
        "{% for m in messages %}{% set c = m['content'] %}"
        "{% if m['role'] == 'assistant' and '</think>' in c %}"
        "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
    "composes": (
        "{% for m in messages %}{{ '<|' + ('start' if m['role'] == 'user' else 'stop') + '|>\n' }}"
        "{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|' + 'stop' + '|>\n' }}{% endif %}"
    ),
    "inspects": (
        "{% for m in messages %}{% set c = m['content'] %}"
        "{% if c.endswith('/brief') %}{% set c = c.replace('/brief', '').rstrip() %}{% endif %}"
        "{% if c == 'hello' %}{% set c = 'Hello!' %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


def write(hf: Any, directory: Path, template: str | None) -> Path:
    """Saves a tokenizer with a chat template as a Hugging Face directory."""
    hf.chat_template = template
    hf.save_pretrained(directory)
    return directory
