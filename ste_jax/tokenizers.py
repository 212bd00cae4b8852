"""How does text become token ids and back, and a chat a prompt?

One `Tokenizer` over the Hugging Face libraries, read from a Hugging Face directory, from a
directory that `Tokenizer.save` wrote, or from a GGUF file. A prompt has the ids that
`apply_chat_template(tokenize=True)` gives, except that text of data never becomes a control token
(`ste_jax.control_tokens` tells how). Nothing here imports JAX.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from etils import epath

from ste_jax.control_tokens import Fence, Marks, Piece, new_secret
from ste_jax.errors import RequestError
from ste_jax.generators.protocol import Message
from ste_jax.gguf_tokenizer import read_gguf_tokenizer

# `transformers` tells everybody at import that PyTorch is not there; it need not be.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

_CHAT_TEMPLATE = "chat_template.jinja"
_TEXTS = (".jinja", ".json", ".model", ".txt")
"""Endings of the files that may say something about a tokenizer; weights and code have others."""

# Templates that put today's date into the prompt would make a run depend on the day it is resumed.
_DATE = {"d": "26", "b": "Jul", "B": "July", "m": "07", "Y": "2024", "y": "24", "A": "Friday"}
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{letter}', '{text}')" for letter, text in _DATE.items())
    + " }}{% endmacro +%}"
)

_LOOKS_LIKE_CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>", re.DOTALL)


class Tokenizer:
    """Text to ids and back, and chats to prompts. Made by `load_tokenizer`."""

    vocab_size: int
    """One more than the highest id."""
    eos_ids: tuple[int, ...]
    """The ids that end a completion: end of sequence first, and the template's end of turn."""
    pad_id: int
    chat_template: str
    control_ids: frozenset[int]
    """Ids that data never gives: those of special tokens, and of the added tokens that the chat
    template writes or that are written `<|...|>`. (Where a vocabulary cannot spell every character,
    its unknown token still stands for the others.)"""

    def __init__(self, hf: Any, chat_template: str, end_ids: Iterable[int] = ()) -> None:
        """`hf` is a `transformers` tokenizer with a `tokenizers` backend."""
        self._hf = hf
        self._backend = hf.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.chat_template = chat_template
        self._rendered_template = (
            _FIXED_DATE + chat_template if "strftime_now" in chat_template else chat_template
        )
        vocab: Mapping[str, int] = self._backend.get_vocab(with_added_tokens=True)
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
        self._fence = Fence(self._backend, self._control, hf.unk_token_id)
        self._marks = Marks(self._control)
        self._folds_system = self._refuses_system()
        ends = [hf.eos_token_id, *end_ids, self._end_of_turn()]
        self.eos_ids = tuple(dict.fromkeys(int(end) for end in ends if end is not None))
        if not self.eos_ids:
            raise RequestError("the tokenizer names no end-of-sequence token (eos_token)")
        self.pad_id = self.eos_ids[0] if hf.pad_token_id is None else int(hf.pad_token_id)

    # -----------------------------------------------------------------------------------------
    # Text

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text of data; it gives no control token, whatever it says.

        With `continues` the text follows other tokens: tokenizers that see a space before the first
        word of a text see none there.
        """
        return self._fence.encode([Piece(text)], continues=continues)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`; without special tokens, unless told otherwise."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    # -----------------------------------------------------------------------------------------
    # Chats

    def prompt_ids(self, messages: Sequence[Message], continue_text: str = "") -> list[int]:
        """Ids of a chat up to the assistant's turn, which begins with `continue_text`.

        For clean text they equal those of `apply_chat_template(messages, tokenize=True,
        add_generation_prompt=True)`; contents and `continue_text` give no control token. A system
        turn that the template refuses or ignores is put before the first user turn, a blank line
        between. Raises `RequestError` where the template refuses the chat.
        """
        if not messages:
            raise RequestError("a chat needs at least one message")
        for message in messages:
            # A role is written by the template as if it were its own text.
            if not message["role"].isidentifier():
                raise RequestError(f"a message's role is {message['role']!r}; it must be a word")
        turns = [{"role": each["role"], "content": each["content"]} for each in messages]
        if self._folds_system:
            turns = _without_system(turns)
        return self._fence.encode([*self._pieces(turns), Piece(continue_text)])

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

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes a Hugging Face tokenizer to `directory`, which `load_tokenizer` reads back alike.

        The ids in `eos_ids` go into `generation_config.json`, where generation libraries look.
        """
        with tempfile.TemporaryDirectory() as written:
            self._hf.save_pretrained(written)
            config_file = Path(written, "tokenizer_config.json")
            config = json.loads(config_file.read_text(encoding="utf-8"))
            # This class takes tokenizer.json as it stands, in every version of `transformers`.
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            # How this one was loaded is no property of the tokenizer.
            for key in ("is_local", "local_files_only", "name_or_path"):
                config.pop(key, None)
            _write_json(config_file, config)
            generation = {"eos_token_id": list(self.eos_ids), "pad_token_id": self.pad_id}
            _write_json(Path(written, "generation_config.json"), generation)
            target = epath.Path(directory)
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path(written).iterdir()):
                (target / file.name).write_bytes(file.read_bytes())


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a Hugging Face directory, a saved one, or a GGUF file.

    `path` may be local or, for a directory, remote. The chat template comes from there too; for a
    GGUF file without one, from a file `chat_template.jinja` beside it. Code that a directory brings
    along is never run. Raises `RequestError` that names what is missing.
    """
    source = epath.Path(path)
    if source.is_dir():
        with tempfile.TemporaryDirectory() as near:
            for file in source.iterdir():
                if file.suffix in _TEXTS and file.is_file():
                    Path(near, file.name).write_bytes(file.read_bytes())
            return _from_directory(Path(near), str(source))
    if source.suffix == ".gguf" and source.exists():
        return _from_gguf(Path(source))
    raise RequestError(
        f"{source}: no tokenizer there; give a Hugging Face directory with a tokenizer.json, or a "
        ".gguf file"
    )


def _from_directory(directory: Path, name: str) -> Tokenizer:
    # Here, not above: it takes seconds to import.
    from transformers import AutoTokenizer

    names = {file.name for file in directory.iterdir()}
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise RequestError(f"{name}/tokenizer.json is missing (and so is tokenizer.model)")
    try:
        hf = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    # The tokenizers library raises bare exceptions for files that it cannot read.
    except Exception as error:
        raise RequestError(f"{name}: the tokenizer cannot be read ({error})") from error
    if getattr(hf, "backend_tokenizer", None) is None:
        raise RequestError(f"{name}: a tokenizer.json is needed, or files that give one")
    end_ids: list[int] = []
    if "generation_config.json" in names:
        ends = _read_json(directory / "generation_config.json", name).get("eos_token_id")
        end_ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return _with_template(hf, name, f"put it into {name}/{_CHAT_TEMPLATE}", end_ids)


def _from_gguf(file: Path) -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    found = read_gguf_tokenizer(file)
    beside = file.with_name(_CHAT_TEMPLATE)
    template = found.chat_template
    if template is None and beside.exists():
        template = beside.read_text(encoding="utf-8")
    hf = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=found.backend, chat_template=template, **found.special
    )
    return _with_template(hf, str(file), f"put it into {beside}", found.end_ids)


def _with_template(hf: Any, name: str, remedy: str, end_ids: Iterable[int]) -> Tokenizer:
    try:
        template = hf.get_chat_template()
    except ValueError as error:
        raise RequestError(f"{name}: there is no chat template; {remedy}") from error
    # Of several templates the default one is kept.
    hf.chat_template = template
    try:
        return Tokenizer(hf, template, end_ids)
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from error


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


def _read_json(file: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{name}/{file.name}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise RequestError(f"{name}/{file.name}: a JSON object is expected")
    return values


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
