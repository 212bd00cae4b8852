"""How is pico's tokenizer made?

A byte-level encoding of the world's few hundred words: a piece of text that is known is one token
(as with Llama 3, `ignore_merges`), any other is its bytes. Digits stand alone, so that calculating
can be learnt. A long line that is said again and again, and text in brackets, is one piece, so that
the lines of the prompt templates, which every chat repeats, are single tokens.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from ste_jax.tasks.pairwise import FIRST, SECOND, mark

SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_LONG = 48
"""A line of so many characters may be one piece."""
_OFTEN = 20
"""It is one if it stands in the texts so many times oftener than other pieces have to: a template's
line does, a sum that recurs does not."""
_BEFORE_DIGIT = r"(?: (?=\d))?"
_PIECES = "|".join(
    (
        r"\n+",
        re.escape(mark("VERDICT")).replace("VERDICT", f"[{FIRST}{SECOND}]"),
        r"\[[^\[\]\n]+\]",
        r" ?<[^<>\n]+>",
        r" ?\([^()\n]+\)",
        r"=+(?=\n)",
        r"\d",
        rf" ?[A-Za-z]+{_BEFORE_DIGIT}",
        rf" ?[^\s\w]{_BEFORE_DIGIT}",
        r" ",
    )
)


def make_tokenizer(texts: Iterable[str], least: int) -> Tokenizer:
    """A tokenizer that knows every piece which stands in `texts` at least so often."""
    texts = list(texts)
    lines = Counter(line for text in texts for line in text.split("\n") if len(line) >= _LONG)
    said_again = (re.escape(line) for line in sorted(lines) if lines[line] >= _OFTEN * least)
    whole = [rf"(?<![^\n]){line}(?![^\n])" for line in said_again]
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join([*whole, _PIECES])), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in pieces.pre_tokenize_str(text))
    known = sorted(piece for piece, count in counts.items() if count >= least)
    names = dict.fromkeys([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *known])
    tokenizer = Tokenizer(
        models.BPE({name: i for i, name in enumerate(names)}, [], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write it as `transformers` reads it."""
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
