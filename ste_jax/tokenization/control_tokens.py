"""How is text of data kept from becoming a control token?

A control token is one that gives a prompt its structure: a special token, or an added token that
the chat template writes. In a chat template's output nothing tells the template's own `<|im_end|>`
from one that stood in an answer, and a tokenizer would make the same control token of both. Two
devices, both built on a secret that no text can hold, tell them apart:

`Marks` surround the contents before the template is rendered, so that afterwards it is known which
parts of the rendered text are data.

A `TokenizersCoder` holds a copy of the tokenizer in which every control token has a secret name
and its true spelling is no piece of the vocabulary. The template's control tokens are written with
their secret names, and whatever data says is encoded as plain text. Apart from the names the copy
is the same tokenizer, so that texts without control tokens in their data give the same ids.
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import tokenizers

from ste_jax.prompts.thoughts import TOKENS
from ste_jax.system.errors import RequestError, WorkError

_DIGITS = 24
"""Length of a secret in digits: a text holds one by chance with probability 10**-24."""


def new_secret(texts: Iterable[str]) -> str:
    """A random run of digits, which templates pass on unchanged, that occurs in none of `texts`."""
    texts = list(texts)
    while True:
        secret = f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}d}"
        if not any(secret in text for text in texts):
            return secret


def new_ends(texts: Iterable[str]) -> tuple[str, str]:
    """Two private-use characters that occur in none of `texts`, to keep what is between them apart
    from what is around it."""
    held = frozenset().union(*texts)
    free = (chr(code) for code in itertools.chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE)))
    first, second, *_ = (*itertools.islice((end for end in free if end not in held), 2), "", "")
    if not second:
        raise RequestError("a text holds every private-use character there is; leave some out")
    return first, second


# ---------------------------------------------------------------------------------------------
# Marks around contents


@dataclass(frozen=True)
class Piece:
    """A piece of a rendered prompt: one control token of the template's, or a stretch of text."""

    text: str
    control: bool = False
    data: bool = False
    """For a stretch: whether it comes from a content as a whole (template text is never data)."""


def text_of(pieces: Iterable[Piece]) -> str:
    """The text of pieces, joined."""
    return "".join(piece.text for piece in pieces)


def controls_of(pieces: Iterable[Piece]) -> list[str]:
    """The control tokens among pieces."""
    return [piece.text for piece in pieces if piece.control]


class Marks:
    """Marks around contents, by which data is found again in a rendered text. Neither their secret
    nor the characters at their ends are in any content."""

    def __init__(self, control: Iterable[str], texts: Sequence[str] = ()) -> None:
        """Marks for a tokenizer's `control` tokens, fit for `texts`."""
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # Whitespace before a token is looked at from its start only: long runs would cost their
        # square.
        self._held = re.compile(rf"(?:(?<!\s)\s*)?(?:{self._control.pattern})\s*")
        self.secret = new_secret(texts)
        self._ends = new_ends(texts)
        self._count = 0
        opening, closing = self._mark(r"0(\d+)"), self._mark(r"1\d+")
        self._pieces = re.compile(
            rf"{opening}(?P<data>.*?){self._mark(r'1')[:-1]}\1{self._ends[1]}"
            rf"|{opening}|{closing}|(?P<control>{self._control.pattern})",
            re.DOTALL,
        )
        self._any = re.compile(self._mark(r"\d+"))

    def _mark(self, name: str) -> str:
        return f"{self._ends[0]}{self.secret}{name}{self._ends[1]}"

    def fit(self, texts: Iterable[str]) -> bool:
        """Whether none of `texts` holds a part of a mark."""
        return not any(part in text for text in texts for part in (self.secret, *self._ends))

    def holds_control(self, text: str) -> bool:
        """Whether `text` spells a control token."""
        return self._control.search(text) is not None

    def controls(self, text: str) -> list[str]:
        """The control tokens that `text` spells, in their order."""
        return self._control.findall(text)

    def around(self, content: str) -> str:
        """`content` between marks, and once more each control token that it spells.

        The marks stand inside the whitespace at the ends, which a template may trim. The inner ones
        are for templates that cut a content in two, where the outer ones no longer enclose it.
        """
        core = content.strip()
        if not core:
            return content
        start = content.index(core)
        held = self._held.sub(lambda match: self._enclosed(match.group()), core)
        return content[:start] + self._enclosed(held) + content[start + len(core) :]

    def _enclosed(self, text: str) -> str:
        self._count += 1
        opening, closing = (self._mark(f"{side}{self._count}") for side in "01")
        return f"{opening}{text}{closing}"

    def pieces(self, rendered: str) -> list[Piece]:
        """The rendered text without its marks, in pieces.

        What stands between the two marks of a content is data. A mark whose partner the template
        dropped says nothing but that no control token reaches across it.
        """
        pieces: list[Piece] = []
        end = 0
        for match in self._pieces.finditer(rendered):
            pieces.append(Piece(rendered[end : match.start()]))
            if match["data"] is not None:
                pieces.append(Piece(self._any.sub("", match["data"]), data=True))
            elif match["control"] is not None:
                pieces.append(Piece(match["control"], control=True))
            end = match.end()
        pieces.append(Piece(rendered[end:]))
        return [piece for piece in pieces if piece.text]

    def survived(self, pieces: Iterable[Piece]) -> bool:
        """Whether the marks came through the template whole, or not at all.

        If they did not, the text holds pieces of them: the secret, or an end of a mark.
        """
        return self.fit(["".join(piece.text for piece in pieces)])


# ---------------------------------------------------------------------------------------------
# A tokenizer whose control tokens have secret names


class TokenizersCoder:
    """A copy of `backend` that makes control tokens of secret names and of nothing else."""

    def __init__(
        self, backend: tokenizers.Tokenizer, control: Mapping[str, int], unknown_id: int | None
    ) -> None:
        self._decoder = _keeping(backend, TOKENS)
        self._secret = new_secret(())
        # A token that ends with one of these would take it from the name that follows it.
        self._ends = new_ends(backend.get_vocab(with_added_tokens=True))
        self._ids = dict(control)
        self._control_ids = frozenset(control.values()) - {unknown_id}
        names = {text: self._name(token_id) for text, token_id in control.items()}
        self._anchor = self._name(10**8 - 1)
        self._copy = tokenizers.Tokenizer.from_str(
            json.dumps(_renamed(json.loads(backend.to_str()), names))
        )
        self._copy.add_tokens([tokenizers.AddedToken(self._anchor, normalized=False)])

    def _name(self, token_id: int) -> str:
        return f"{self._ends[0]}{self._secret}{token_id:08d}{self._ends[1]}"

    def encode(
        self, batch: Iterable[Iterable[Piece]], *, continues: bool = False
    ) -> list[list[int]]:
        """For each text the ids of its pieces joined, without what the tokenizer would add at
        either end.

        With `continues` the texts are taken to follow other tokens, so that no space is put before
        them. A tokenizer that makes a control token out of plain text all the same, or none where
        the template writes one, raises `WorkError`.
        """
        texts: list[str] = []
        expected: list[list[int]] = []
        for pieces in batch:
            pieces = list(pieces)
            expected.append([self._ids[piece.text] for piece in pieces if piece.control])
            words = (
                self._name(self._ids[piece.text]) if piece.control else piece.text
                for piece in pieces
            )
            texts.append((self._anchor if continues else "") + "".join(words))
        # The fast call leaves out each token's place in the text, which is not needed.
        found = self._copy.encode_batch_fast(texts, add_special_tokens=False)
        encoded = [list(each.ids)[int(continues) :] for each in found]
        for ids, control in zip(encoded, expected, strict=True):
            self._check(ids, control)
        return encoded

    def _check(self, ids: Sequence[int], expected: Sequence[int]) -> None:
        found = [token_id for token_id in ids if token_id in self._control_ids]
        if found != [token_id for token_id in expected if token_id in self._control_ids]:
            raise WorkError(
                f"the tokenizer makes the control tokens {found} of a text that has {expected}; "
                "its added tokens must be matched wherever the chat template writes them"
            )

    def decode(self, batch: Iterable[Sequence[int]], skip_special: bool) -> list[str]:
        """The text of each list of ids; with `skip_special` without special tokens other than marks
        of thoughts."""
        lists = [list(ids) for ids in batch]
        texts: list[str] = self._decoder.decode_batch(lists, skip_special_tokens=skip_special)
        return texts


def _keeping(backend: tokenizers.Tokenizer, kept: Collection[str]) -> tokenizers.Tokenizer:
    """A tokenizer that decodes the tokens in `kept` as text even where it leaves special ones
    out."""
    special = backend.get_added_tokens_decoder().values()
    if not any(token.special and token.content in kept for token in special):
        return backend
    serialized = json.loads(backend.to_str())
    for token in serialized["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in kept
    return tokenizers.Tokenizer.from_str(json.dumps(serialized))


def _renamed(backend: dict[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """A serialized `tokenizers.Tokenizer` with the tokens in `names` called by their new names.

    Every id stays. Merges that make or use a control token are dropped: plain text may not be built
    up to one.
    """
    model = backend["model"]
    assert isinstance(model, dict)
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if "merges" in model:
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if not ({*pair, "".join(pair)} & names.keys())]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = backend["added_tokens"]
    assert isinstance(added, list)
    for token in added:
        token["content"] = names.get(token["content"], token["content"])
    return {**backend, "post_processor": None, "truncation": None, "padding": None}
