"""How does text become token ids and back, and a chat a prompt?

One `Tokenizer`, read from a Hugging Face directory, from a directory that `Tokenizer.save` wrote,
or from a GGUF file. A prompt has the ids that `apply_chat_template(tokenize=True)` gives, except
that text of data never becomes a control token (`ste_jax.control_tokens` tells how).

Two libraries can do the work. `tokenizers` is the faster (`benchmarks/tokenizer_libraries.py`) and
does it unless told otherwise; `tensorflow_text` runs SentencePiece itself on the `tokenizer.model`
that Gemma, Llama 2 and Mistral ship, and is what a conversion from one is checked against. Nothing
here imports JAX.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jinja2
from etils import epath

from ste_jax import files, sentencepiece_model
from ste_jax.control_tokens import Fence, Marks, Piece, new_secret
from ste_jax.errors import RequestError
from ste_jax.generators.protocol import Message
from ste_jax.gguf_tokenizer import read_gguf_tokenizer
from ste_jax.sentencepiece_fence import SentencePieceFence
from ste_jax.sentencepiece_model import SentencePieceModel

# `transformers` tells everybody at import that PyTorch is not there; it need not be.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

_CHAT_TEMPLATE = "chat_template.jinja"
_SENTENCEPIECE = "tokenizer.model"
_TEXTS = (".jinja", ".json", ".model", ".txt")
"""Endings of the files that may say something about a tokenizer; weights and code have others."""

# Templates that put today's date into the prompt would make a run depend on the day it is resumed.
_DATE = {"d": "26", "b": "Jul", "B": "July", "m": "07", "Y": "2024", "y": "24", "A": "Friday"}
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{letter}', '{text}')" for letter, text in _DATE.items())
    + " }}{% endmacro +%}"
)

Library = Literal["tokenizers", "tensorflow_text"]

_LOOKS_LIKE_CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>", re.DOTALL)


class _Coder(Protocol):
    """What a library does for a `Tokenizer`."""

    def encode(
        self, batch: Iterable[Iterable[Piece]], *, continues: bool = False
    ) -> list[list[int]]: ...

    def decode(self, batch: Iterable[Sequence[int]], skip_special: bool) -> list[str]: ...


class Tokenizer:
    """Text to ids and back, and chats to prompts. Made by `load_tokenizer`."""

    vocab_size: int
    """One more than the highest id."""
    eos_ids: tuple[int, ...]
    """The ids that end a completion: end of sequence first, and the template's end of turn."""
    bos_id: int | None
    pad_id: int
    chat_template: str
    control_ids: frozenset[int]
    """Ids that data never gives: those of special tokens, and of the added tokens that the chat
    template writes or that are written `<|...|>`. (Where a vocabulary cannot spell every character,
    its unknown token still stands for the others.)"""

    def __init__(
        self,
        hf: Any,
        chat_template: str,
        end_ids: Iterable[int] = (),
        sentencepiece: SentencePieceModel | None = None,
        library: Library = "tokenizers",
    ) -> None:
        """`hf` is a `transformers` tokenizer with a `tokenizers` backend, `sentencepiece` the model
        that it was converted from; `tensorflow_text` needs that."""
        self._hf = hf
        self._sentencepiece = sentencepiece
        backend = hf.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        self.chat_template = chat_template
        self._rendered_template = (
            _FIXED_DATE + chat_template if "strftime_now" in chat_template else chat_template
        )
        vocab: Mapping[str, int] = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self._control = {
            token.content: int(token_id)
            for token_id, token in hf.added_tokens_decoder.items()
            if not token.content.isspace()
            and (
                token.special
                or token.content in chat_template
                or _LOOKS_LIKE_CONTROL.fullmatch(token.content)
            )
        }
        self.control_ids = frozenset(self._control.values())
        self._coder: _Coder
        if library == "tokenizers":
            self._coder = Fence(backend, self._control, hf.unk_token_id)
        elif sentencepiece is None:
            raise RequestError("tensorflow-text reads a tokenizer.model, and there is none")
        else:
            added = {i: str(token) for i, token in hf.added_tokens_decoder.items()}
            special = [i for i, token in hf.added_tokens_decoder.items() if token.special]
            self._coder = SentencePieceFence(sentencepiece, vocab, added, self._control, special)
        self._marks = Marks(self._control)
        self._folds_system = self._refuses_system()
        ends = [hf.eos_token_id, *end_ids, self._end_of_turn()]
        self.eos_ids = tuple(dict.fromkeys(int(end) for end in ends if end is not None))
        if not self.eos_ids:
            raise RequestError("the tokenizer names no end-of-sequence token (eos_token)")
        self.bos_id = hf.bos_token_id
        self.pad_id = self.eos_ids[0] if hf.pad_token_id is None else int(hf.pad_token_id)

    # -----------------------------------------------------------------------------------------
    # Text

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text of data; it gives no control token, whatever it says.

        With `continues` the text follows other tokens: tokenizers that see a space before the first
        word of a text see none there.
        """
        return self.encode_batch([text], continues=continues)[0]

    def encode_batch(self, texts: Iterable[str], *, continues: bool = False) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return self._coder.encode(([Piece(text)] for text in texts), continues=continues)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`; without special tokens and those that end a turn, unless told
        otherwise."""
        return self.decode_batch([ids], skip_special)[0]

    def decode_batch(self, batch: Iterable[Sequence[int]], skip_special: bool = True) -> list[str]:
        """`decode` of many lists of ids, on all cores."""
        if skip_special:
            batch = [[i for i in ids if i not in self.eos_ids] for ids in batch]
        return self._coder.decode(batch, skip_special)

    # -----------------------------------------------------------------------------------------
    # Chats

    def prompt_ids(self, messages: Sequence[Message], continue_text: str = "") -> list[int]:
        """Ids of a chat up to the assistant's turn, which begins with `continue_text`.

        For clean text they equal those of `apply_chat_template(messages, tokenize=True,
        add_generation_prompt=True)`; contents and `continue_text` give no control token. A system
        turn that the template refuses or ignores is put before the first user turn, a blank line
        between. Raises `RequestError` where the template refuses the chat.
        """
        return self._coder.encode([self._prompt(messages, continue_text)])[0]

    def prompt_ids_batch(self, chats: Iterable[Sequence[Message]]) -> list[list[int]]:
        """`prompt_ids` of many chats, on all cores."""
        return self._coder.encode(self._prompt(messages, "") for messages in chats)

    def _prompt(self, messages: Sequence[Message], continue_text: str) -> list[Piece]:
        if not messages:
            raise RequestError("a chat needs at least one message")
        for message in messages:
            # A role is written by the template as if it were its own text.
            if not message["role"].isidentifier():
                raise RequestError(f"a message's role is {message['role']!r}; it must be a word")
        turns = [{"role": each["role"], "content": each["content"]} for each in messages]
        if self._folds_system:
            turns = _without_system(turns)
        return [*self._pieces(turns), Piece(continue_text)]

    def _pieces(self, turns: Sequence[Mapping[str, str]], prompt: bool = True) -> list[Piece]:
        """The rendered chat, with it known which control tokens are the template's own."""
        contents = [turn["content"] for turn in turns]
        if any(self._marks.secret in content for content in contents):
            self._marks = Marks(self._control, contents)
        marks = self._marks
        marked = [{**turn, "content": marks.around(turn["content"])} for turn in turns]
        pieces = marks.pieces(self._render(marked, prompt))
        if not any(map(marks.holds_control, contents)):
            # A template may look at a content (how does it end? is it this word?) and find the
            # marks. For clean contents the plain rendering is the right one, unless the template
            # made other control tokens out of them.
            plain = marks.pieces(self._render(turns, prompt))
            if _controls(plain) == _controls(pieces):
                return plain if _text(plain) != _text(pieces) else pieces
        if not marks.survived(pieces, contents):
            raise RequestError(
                "the chat template rewrites the contents that it is given, so that control tokens "
                "in them cannot be told from its own; simplify the template"
            )
        return pieces

    def _render(self, turns: Sequence[Mapping[str, str]], prompt: bool) -> str:
        try:
            return str(
                self._hf.apply_chat_template(
                    list(turns),
                    chat_template=self._rendered_template,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )
        except (jinja2.TemplateError, TypeError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise RequestError(
                f"the chat template refuses a chat of these roles: {roles} ({error})"
            ) from error

    def _refuses_system(self) -> bool:
        """Whether the template raises at a system turn or leaves its content out."""
        content = new_secret((self.chat_template,))
        user = {"role": "user", "content": "Hello"}
        self._render([user], True)
        try:
            return content not in self._render([{"role": "system", "content": content}, user], True)
        except RequestError:
            return True

    def _end_of_turn(self) -> int | None:
        """The first control token after an assistant's content, if the template writes one."""
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        try:
            pieces = self._pieces(turns, prompt=False)
        except RequestError:
            return None
        contents = [i for i, piece in enumerate(pieces) if piece.data]
        after = pieces[contents[-1] :] if contents else []
        return next((self._control[piece.text] for piece in after if piece.control), None)

    # -----------------------------------------------------------------------------------------
    # Files

    def token_ids(self) -> dict[str, Any]:
        """Its ids as a Hugging Face config names them."""
        ids = {"eos_token_id": list(self.eos_ids), "pad_token_id": self.pad_id}
        return ids if self.bos_id is None else {"bos_token_id": self.bos_id, **ids}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes a Hugging Face tokenizer to `directory`, which `load_tokenizer` reads back alike.

        `token_ids` go into `generation_config.json`, where generation libraries look.
        """
        with tempfile.TemporaryDirectory() as written:
            self._hf.save_pretrained(written)
            config_file = epath.Path(written, "tokenizer_config.json")
            config = files.read_object(Path(config_file))
            # This class takes tokenizer.json as it stands, in every version of `transformers`.
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            # How this one was loaded is no property of the tokenizer.
            for key in ("is_local", "local_files_only", "name_or_path"):
                config.pop(key, None)
            if self._sentencepiece is not None:
                Path(written, _SENTENCEPIECE).write_bytes(self._sentencepiece.serialized)
                config |= sentencepiece_model.knobs_of(self._sentencepiece.prefix)
            files.write_json(config_file, dict(sorted(config.items())))
            files.write_json(epath.Path(written, "generation_config.json"), self.token_ids())
            target = epath.Path(directory)
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path(written).iterdir()):
                (target / file.name).write_bytes(file.read_bytes())


def load_tokenizer(path: str | os.PathLike[str], library: Library = "tokenizers") -> Tokenizer:
    """The tokenizer of a Hugging Face directory, a saved one, or a GGUF file.

    `path` may be local or, for a directory, remote. The chat template comes from there too; for a
    GGUF file without one, from a file `chat_template.jinja` beside it. Code that a directory brings
    along is never run. A `tokenizer.model` without a `tokenizer.json` is turned into one, which is
    held against SentencePiece itself; so is a `tokenizer.json` where `tensorflow_text` is to read
    the model beside it. Raises `RequestError` that names what is missing or differs.
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
    elif _SENTENCEPIECE in names:
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
    remedy = f"put it into {name}/{_CHAT_TEMPLATE}"
    tokenizer = _with_template(hf, name, remedy, end_ids, model, library)
    if library == "tensorflow_text":
        _compare(_with_template(hf, name, remedy, end_ids, model), tokenizer, name)
    elif not given:
        _check_conversion(directory, name)
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
    beside = file.with_name(_CHAT_TEMPLATE)
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


_AWKWARD = (
    "",
    " ",
    "  a   b\t\tc \n\n\n d\r\n  ",
    "It isn't 1,024.5 = 2**10; see https://x.org/?q=[[A]]&r=<b>",
    "na\u00efve cafe\u0301 \u6771\u4eac\u3067\u3059 \U0001f44d\U0001f3fd\u200d\u0e01\u0e33",
    "\x00\x01\x1f\x7f\x85\u00a0\u2028\ufeff\ufffd\u2581\u2581x",
    "<s></s><unk><0x0A><|im_end|>[INST]<start_of_turn>",
)
"""Texts on which conversions are known to go wrong."""


def _compare(ours: Tokenizer, theirs: Tokenizer, name: str) -> None:
    """Raises `RequestError` where SentencePiece, `theirs`, differs on `_AWKWARD`."""
    for continues in (False, True):
        ids, others = (each.encode_batch(_AWKWARD, continues=continues) for each in (ours, theirs))
        for text, one, other in zip(_AWKWARD, ids, others, strict=True):
            if one != other or ours.decode(one) != theirs.decode(other):
                raise RequestError(
                    f"{name}/{_SENTENCEPIECE}: of {text!r} SentencePiece makes {other}, and the "
                    f"tokenizer.json that is there or is made of it {one}; give the tokenizer.json "
                    "that belongs to the model"
                )


def _check_conversion(directory: Path, name: str) -> None:
    """Raises `RequestError` where SentencePiece makes other ids than the tokenizer.json that is
    made of its model.

    In a process of its own: TensorFlow takes the better part of a gigabyte, and devices if it can.
    """
    code = "import sys; from ste_jax.tokenizers import load_tokenizer as load; load(*sys.argv[1:])"
    arguments = [sys.executable, "-c", code, str(directory), "tensorflow_text"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        told = " ".join(done.stderr.strip().splitlines()[-1:])
        raise RequestError(
            told.partition("RequestError: ")[2].replace(str(directory), name) or told
        )


def _without_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns with a leading system turn put before the first user turn's content."""
    if turns[0]["role"] != "system":
        return turns
    system, *rest = turns
    user = rest[0]["content"] if rest and rest[0]["role"] == "user" else ""
    rest = rest[1:] if rest and rest[0]["role"] == "user" else rest
    content = "\n\n".join(part for part in (system["content"], user) if part)
    return [{"role": "user", "content": content}, *rest]


def _text(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _controls(pieces: Iterable[Piece]) -> list[str]:
    return [piece.text for piece in pieces if piece.control]
