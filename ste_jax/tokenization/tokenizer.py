"""How does text become token ids and back, and a chat a prompt?

A `Tokenizer` is read by `ste_jax.tokenization.load`. A prompt has the ids that
`apply_chat_template(tokenize=True)` gives, except that text of data never becomes a control token
(see `ste_jax.tokenization.control_tokens`).

Two libraries can do the work. `tokenizers` is the faster (`benchmarks/tokenizer_libraries.py`) and
the usual one; `tensorflow_text` runs SentencePiece itself on the `tokenizer.model` that Gemma,
Llama 2 and Mistral ship, and is what a conversion from one is checked against. Nothing here imports
JAX.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jinja2
from etils import epath

from ste_jax.generation import Message
from ste_jax.prompts import thoughts
from ste_jax.system import files
from ste_jax.system.errors import RequestError
from ste_jax.tokenization import sentencepiece_model
from ste_jax.tokenization.chat_templates import ASSISTANT, USER, ChatTemplate, end_of_turn
from ste_jax.tokenization.control_tokens import (
    Marks,
    Piece,
    TokenizersCoder,
    controls_of,
    new_secret,
    text_of,
)
from ste_jax.tokenization.sentencepiece_coder import SentencePieceCoder
from ste_jax.tokenization.sentencepiece_model import SentencePieceModel

SENTENCEPIECE = "tokenizer.model"
"""The file of a SentencePiece model."""

NO_ARGUMENTS: Mapping[str, Any] = {}

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
    end_of_turn_id: int
    """The one of `eos_ids` that the chat template writes after an answer, which a judge learns to
    end with; where it writes none, the end of sequence."""
    widest: tuple[str, int]
    """The text and the id of the highest token that a prompt or a completion may hold. Above it a
    vocabulary may have control tokens that neither text nor template writes."""
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
        try:
            self._template = ChatTemplate(chat_template)
        except Exception as error:
            raise RequestError(f"the chat template cannot be read ({_reason(error)})") from error
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
        self._thinks = thoughts.holds_mark(chat_template)
        self._coder: _Coder
        if library == "tokenizers":
            self._coder = TokenizersCoder(backend, self._control, hf.unk_token_id)
        elif sentencepiece is None:
            raise RequestError("tensorflow-text reads a tokenizer.model, and there is none")
        else:
            added = {i: str(token) for i, token in hf.added_tokens_decoder.items()}
            special = [
                i
                for i, token in hf.added_tokens_decoder.items()
                if token.special and token.content not in thoughts.TOKENS
            ]
            self._coder = SentencePieceCoder(sentencepiece, vocab, added, self._control, special)
        self._marks = Marks(self._control, (chat_template,))
        self._folds_system = self._refuses_system()
        named = [int(end) for end in (hf.eos_token_id, *end_ids) if end is not None]
        written = self._end_of_turn(named)
        self.eos_ids = tuple(dict.fromkeys(named if written is None else [*named, written]))
        if not self.eos_ids:
            raise RequestError("the tokenizer names no end-of-sequence token (eos_token)")
        self.end_of_turn_id = self.eos_ids[0] if written is None else written
        self.widest = self._widest(vocab, hf.unk_token_id)
        self.bos_id = hf.bos_token_id
        self.pad_id = self.eos_ids[0] if hf.pad_token_id is None else int(hf.pad_token_id)

    @property
    def control_tokens(self) -> Collection[str]:
        """The texts of the tokens in `control_ids`."""
        return self._control.keys()

    # -----------------------------------------------------------------------------------------
    # Text

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text of data; it gives no control token, whatever it says.

        With `continues` the text follows other tokens: a tokenizer that puts a space before the
        first word of a text then puts none.
        """
        return self.encode_batch([text], continues=continues)[0]

    def encode_batch(self, texts: Iterable[str], *, continues: bool = False) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return self._coder.encode(([Piece(text)] for text in texts), continues=continues)

    def encode_pieces(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of a text that follows other tokens, given in pieces: text or control tokens."""
        return self._coder.encode([[each for each in pieces if each.text]], continues=True)[0]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`. With `skip_special` the special tokens and those that end a turn are
        left out; marks of thoughts are kept, whatever tokens they are."""
        return self.decode_batch([ids], skip_special)[0]

    def decode_batch(self, batch: Iterable[Sequence[int]], skip_special: bool = True) -> list[str]:
        """`decode` of many lists of ids, on all cores."""
        if skip_special:
            batch = [[i for i in ids if i not in self.eos_ids] for ids in batch]
        return self._coder.decode(batch, skip_special)

    # -----------------------------------------------------------------------------------------
    # Chats

    def prompt_ids(
        self,
        messages: Sequence[Message],
        continue_text: str = "",
        arguments: Mapping[str, Any] = NO_ARGUMENTS,
    ) -> list[int]:
        """Ids of a chat up to the assistant's turn, which begins with `continue_text`. The chat
        template is given `arguments` beside the messages.

        For clean text they equal those of `apply_chat_template(messages, tokenize=True,
        add_generation_prompt=True)`; contents and `continue_text` give no control token. A system
        turn that the template refuses or ignores is put before the first user turn, a blank line
        between. Raises `RequestError` where the template refuses the chat.
        """
        return self._coder.encode([self._prompt(messages, continue_text, arguments)])[0]

    def prompt_ids_batch(
        self, chats: Iterable[Sequence[Message]], arguments: Mapping[str, Any] = NO_ARGUMENTS
    ) -> list[list[int]]:
        """`prompt_ids` of many chats, on all cores."""
        return self._coder.encode(self._prompt(messages, "", arguments) for messages in chats)

    @property
    def thinks(self) -> bool:
        """Whether the chat template holds a mark of thoughts at all."""
        return self._thinks

    def opened_thoughts(
        self, messages: Sequence[Message], arguments: Mapping[str, Any] = NO_ARGUMENTS
    ) -> str:
        """The mark of thoughts that the template opens and leaves open at the end of the prompt, or
        nothing. Marks in the messages are only text."""
        if not self._thinks:
            return ""
        turns = self._turns(messages)
        contents = [turn["content"] for turn in turns]
        pieces = self._marks_for(contents).pieces(
            self._render(self._marked(turns), True, arguments)
        )
        last = max((n for n, piece in enumerate(pieces) if piece.data), default=-1)
        return thoughts.left_open(text_of(pieces[last + 1 :]))

    def _prompt(
        self, messages: Sequence[Message], continue_text: str, arguments: Mapping[str, Any]
    ) -> list[Piece]:
        pieces = self._pieces(self._turns(messages), arguments=arguments)
        return [*pieces, Piece(continue_text)]

    def _turns(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        if not messages:
            raise RequestError("a chat needs at least one message")
        for message in messages:
            # A role is written by the template as if it were its own text.
            if not message["role"].isidentifier():
                raise RequestError(f"a message's role is {message['role']!r}; it must be a word")
        turns = [{"role": each["role"], "content": each["content"]} for each in messages]
        return _without_system(turns) if self._folds_system else turns

    def _marks_for(self, contents: Sequence[str]) -> Marks:
        """Marks of which no part occurs in any of the contents."""
        if not self._marks.fit(contents):
            self._marks = Marks(self._control, (self.chat_template, *contents))
        return self._marks

    def _marked(self, turns: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        return [{**turn, "content": self._marks.around(turn["content"])} for turn in turns]

    def _pieces(
        self,
        turns: Sequence[Mapping[str, str]],
        prompt: bool = True,
        arguments: Mapping[str, Any] = NO_ARGUMENTS,
    ) -> list[Piece]:
        """The rendered chat in pieces, in which the template's own control tokens are marked."""
        contents = [turn["content"] for turn in turns]
        marks = self._marks_for(contents)
        pieces = marks.pieces(self._render(self._marked(turns), prompt, arguments))
        if not any(map(marks.holds_control, contents)):
            # A template may look at a content (how does it end? is it this word?) and find the
            # marks. For contents that spell no control token the plain rendering is the right one,
            # if the template writes the same control tokens as for contents that say nothing.
            plain, own = marks.pieces(self._render(turns, prompt, arguments)), pieces
            if not marks.survived(pieces):
                silent = [{**each, "content": "x"} for each in turns]
                own = marks.pieces(self._render(silent, prompt, arguments))
            if controls_of(plain) == controls_of(own):
                return plain if text_of(plain) != text_of(pieces) else pieces
        if not marks.survived(pieces):
            raise RequestError(
                "the chat template rewrites the contents that it is given, so that control tokens "
                "in them look like its own; simplify the template"
            )
        return pieces

    def _render(
        self,
        turns: Sequence[Mapping[str, str]],
        prompt: bool,
        arguments: Mapping[str, Any] = NO_ARGUMENTS,
    ) -> str:
        try:
            named = {**self._hf.special_tokens_map, **arguments}
            return self._template.render(turns, prompt, **named)
        # A template is a stranger's program, which can fail in any way.
        except Exception as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise RequestError(
                f"the chat template refuses a chat of these roles: {roles} ({_reason(error)})"
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

    def _end_of_turn(self, named: Collection[int]) -> int | None:
        """The id of the control token that the template writes after an answer, if it writes one.
        `named` are the ids that the model's files name as ends."""
        known = {text for text, token_id in self._control.items() if token_id in named}
        try:
            found = end_of_turn(self._written, known)
        except RequestError:
            return None
        return None if found is None else self._control[found]

    def _widest(self, vocab: Mapping[str, int], unknown_id: int | None) -> tuple[str, int]:
        """The token of the highest id that can occur; see the field `widest`."""
        kept_out = self.control_ids - {self.end_of_turn_id, unknown_id}
        for roles in ([USER], [USER, ASSISTANT], ["system", USER]):
            try:
                written = [text for part in self._written(roles, True) for text in part]
            except RequestError:
                continue
            kept_out -= {self._control[text] for text in written}
        named = {self._control[text] for text in self._control if text in self.chat_template}
        able = ((text, i) for text, i in vocab.items() if i not in kept_out - named)
        return max(able, key=lambda token: token[1])

    def _written(self, roles: Sequence[str], prompt: bool) -> list[list[str]]:
        """The control tokens that the template writes before, between and after contents."""
        contents: list[str] = []
        for _ in roles:
            contents.append(new_secret((self.chat_template, *contents)))
        turns = [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=True)
        ]
        left, written = self._render(turns, prompt), []
        for content in contents:
            before, _, left = left.partition(content)
            written.append(self._marks.controls(before))
        return [*written, self._marks.controls(left)]

    # -----------------------------------------------------------------------------------------
    # Files

    def special_token_ids(self) -> dict[str, Any]:
        """The ids of its special tokens, as a Hugging Face config names them."""
        ids = {"eos_token_id": list(self.eos_ids), "pad_token_id": self.pad_id}
        return ids if self.bos_id is None else {"bos_token_id": self.bos_id, **ids}

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes a Hugging Face tokenizer to `directory`; `load_tokenizer` reads the same one back.

        `special_token_ids` go into `generation_config.json`, where generation libraries look.
        """
        with tempfile.TemporaryDirectory() as written:
            self._hf.save_pretrained(written)
            config_file = epath.Path(written, "tokenizer_config.json")
            config = files.read_object(Path(config_file))
            # This class takes tokenizer.json as it stands, in every version of `transformers`.
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            # These say how the tokenizer was loaded, which is no property of the tokenizer.
            for key in ("is_local", "local_files_only", "name_or_path"):
                config.pop(key, None)
            if self._sentencepiece is not None:
                Path(written, SENTENCEPIECE).write_bytes(self._sentencepiece.serialized)
                config |= sentencepiece_model.knobs_of(self._sentencepiece.prefix)
            files.write_json(config_file, dict(sorted(config.items())))
            files.write_json(
                epath.Path(written, "generation_config.json"), self.special_token_ids()
            )
            target = epath.Path(directory)
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path(written).iterdir()):
                (target / file.name).write_bytes(file.read_bytes())


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {text}"


def _without_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns with a leading system turn put before the first user turn's content."""
    if turns[0]["role"] != "system":
        return turns
    system, *rest = turns
    user = rest[0]["content"] if rest and rest[0]["role"] == "user" else ""
    rest = rest[1:] if rest and rest[0]["role"] == "user" else rest
    content = "\n\n".join(part for part in (system["content"], user) if part)
    return [{"role": "user", "content": content}, *rest]
