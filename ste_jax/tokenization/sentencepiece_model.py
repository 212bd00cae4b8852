"""What does a SentencePiece model say, and how do the `tokenizers` library's parts say the same?

Gemma, Llama 2, Mistral and Mixtral ship a `tokenizer.model`: pieces with scores, their kinds, and
how a text is prepared (github.com/google/sentencepiece, sentencepiece_model.proto). GGUF files hold
the same pieces. `build_backend` makes of them a tokenizer that gives the ids of SentencePiece
itself; published conversions do not where a text begins with spaces.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gguf import TokenType  # its kinds are SentencePiece's
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ste_jax.system import files
from ste_jax.system.errors import RequestError

SPACE = "▁"
"""How a piece spells a space."""

Prefix = Literal["never", "first", "always"]
"""Where a space is put before a text: nowhere, at its start, or also after each control token."""

_CLASSES = ("LlamaTokenizer", "GemmaTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
"""Classes of `transformers` that use the model's own ids; other classes number differently."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A SentencePiece BPE vocabulary: the n-th entries belong to id n."""

    texts: Sequence[str]
    scores: Sequence[float]
    """A higher one is merged first."""
    kinds: Sequence[int]
    """`gguf.TokenType`."""
    unknown_id: int


@dataclass(frozen=True)
class SentencePieceModel:
    """A `tokenizer.model` and how its texts begin."""

    serialized: bytes
    prefix: Prefix


@dataclass(frozen=True, kw_only=True)
class SentencePieceDirectory:
    """What a directory says about text that holds a `tokenizer.model` and no `tokenizer.json`."""

    model: SentencePieceModel
    backend: Tokenizer
    special: dict[str, str]
    """Names of a Hugging Face tokenizer's special tokens (`eos_token`, ...) to their texts."""
    chat_template: str | dict[str, str] | None


def build_backend(pieces: Pieces, prefix: Prefix) -> Tokenizer:
    """A tokenizer that cuts and merges as SentencePiece does; control tokens are not matched yet.

    `tokenizers` puts a space before a text only where there is none, SentencePiece always. So the
    text's spaces are spelled as `▁` first; then a space is put before it and spelled in turn.
    """
    backend = Tokenizer(
        models.BPE(
            vocab={text: i for i, text in enumerate(pieces.texts)},
            merges=_merges(pieces),
            unk_token=pieces.texts[pieces.unknown_id],
            fuse_unk=True,
            byte_fallback=TokenType.BYTE in pieces.kinds,
        )
    )
    spelled: Any = normalizers.Replace(" ", SPACE)
    decode: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "always":
        spelled = normalizers.Sequence([normalizers.Prepend(SPACE), spelled])
    elif prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False),
            ]
        )
    if prefix != "never":
        decode.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = spelled
    backend.decoder = decoders.Sequence(decode)
    return backend


def _merges(pieces: Pieces) -> list[tuple[str, str]]:
    """The merges that build each piece out of two others, the piece of the highest score first."""
    built = (TokenType.NORMAL, TokenType.USER_DEFINED)
    known = {text: i for i, text in enumerate(pieces.texts) if pieces.kinds[i] in built}
    found: list[tuple[float, int, int, int]] = []
    for text, i in known.items():
        for cut in range(1, len(text)):
            left, right = known.get(text[:cut]), known.get(text[cut:])
            if left is not None and right is not None:
                found.append((-pieces.scores[i], i, left, right))
    return [(pieces.texts[left], pieces.texts[right]) for _, _, left, right in sorted(found)]


# ---------------------------------------------------------------------------------------------
# The file


def parse(serialized: bytes, name: str) -> Any:
    """The `ModelProto` of a `tokenizer.model`. Raises `RequestError` for anything else."""
    try:
        from transformers.convert_slow_tokenizer import import_protobuf

        proto = import_protobuf().ModelProto()  # type: ignore[no-untyped-call]
    except ImportError as error:
        raise RequestError(
            f"{name}: a SentencePiece model is read by protobuf, which tensorflow-text brings "
            f"along ({error}); install it, or give a tokenizer.json"
        ) from error
    try:
        proto.ParseFromString(serialized)
    # The error's type is protobuf's, which need not be installed when this module is imported.
    except Exception as error:
        raise RequestError(
            f"{name}: not a SentencePiece model ({error}); give a tokenizer.json"
        ) from error
    if not proto.pieces:
        raise RequestError(f"{name}: a SentencePiece model without pieces; give a tokenizer.json")
    return proto


def prefix_of(proto: Any, config: Mapping[str, Any]) -> Prefix:
    """Where texts begin with a space, by the model and by its `tokenizer_config.json`.

    Where that file does not say, it is at the start alone, as in `transformers`' LlamaTokenizer.
    """
    if not proto.normalizer_spec.add_dummy_prefix or config.get("add_prefix_space") is False:
        return "never"
    return "always" if config.get("legacy") else "first"


def knobs_of(prefix: Prefix) -> dict[str, Any]:
    """The fields of a `tokenizer_config.json` from which `prefix_of` gives `prefix`."""
    return {
        "legacy": prefix == "always",
        **({"add_prefix_space": False} if prefix == "never" else {}),
    }


def beside(directory: Path, name: str) -> SentencePieceModel | None:
    """The `tokenizer.model` beside a `tokenizer.json`, if it is one of SentencePiece."""
    file = directory / "tokenizer.model"
    if not file.exists():
        return None
    serialized = file.read_bytes()
    try:
        proto = parse(serialized, f"{name}/{file.name}")
    except RequestError:
        return None
    return SentencePieceModel(
        serialized, prefix_of(proto, _read(directory, "tokenizer_config.json", name))
    )


def read_directory(directory: Path, name: str) -> SentencePieceDirectory:
    """The tokenizer of the `tokenizer.model` in `directory`, which messages call `name`.

    The JSON files that Hugging Face puts beside it are read where there are any. Raises
    `RequestError` for files that do not fit together, and for a model unlike the published BPE
    models: one that rewrites texts, or that has both pieces that are matched whole and a space
    before the text.
    """
    config = _read(directory, "tokenizer_config.json", name)
    kind = str(config.get("tokenizer_class") or _CLASSES[0])
    if kind.removesuffix("Fast") not in _CLASSES:
        raise RequestError(
            f"{name}/tokenizer_config.json: tokenizer_class {kind} does not count its ids as "
            "tokenizer.model does; give a tokenizer.json"
        )
    serialized = (directory / "tokenizer.model").read_bytes()
    proto = parse(serialized, f"{name}/tokenizer.model")
    prefix = prefix_of(proto, config)
    unlike = _unlike(proto, prefix)
    if unlike:
        raise RequestError(f"{name}/tokenizer.model: {unlike}; give a tokenizer.json")
    named = _read(directory, "special_tokens_map.json", name) | config
    special = _special(named, proto, name)
    pieces = _pieces(
        proto, _added(directory, config, name), {*special.values(), *_more(named)}, name
    )
    for key, text in special.items():
        if text not in pieces.texts:
            raise RequestError(f"{name}: {key} is {text!r}, which is no token of tokenizer.model")
    backend = build_backend(pieces, prefix)
    control, defined = [], []
    for i, (text, kind_of) in enumerate(zip(pieces.texts, pieces.kinds, strict=True)):
        if backend.token_to_id(text) != i:
            raise RequestError(f"{name}/tokenizer.model: {text!r} is there twice")
        if kind_of in _CONTROL:
            control.append(AddedToken(text, normalized=False, special=True))
        elif kind_of == TokenType.USER_DEFINED:
            # The model's own are matched in the text whose spaces are spelled as in the piece.
            defined.append(AddedToken(text, normalized=i < len(proto.pieces)))
    # All are added in one call: each call compiles all that is to be matched again.
    backend.add_special_tokens(control)
    backend.add_tokens(defined)
    return SentencePieceDirectory(
        model=SentencePieceModel(serialized, prefix),
        backend=backend,
        special=special,
        chat_template=_template(directory, config, name),
    )


_CONTROL = (TokenType.CONTROL, TokenType.UNKNOWN)


def _unlike(proto: Any, prefix: Prefix) -> str | None:
    """What `build_backend` cannot build of the model; None if it can build all."""
    training, spec = proto.trainer_spec, proto.normalizer_spec
    kinds = {piece.type for piece in proto.pieces}
    if training.model_type != training.ModelType.Value("BPE"):
        return f"its pieces are chosen by {training.ModelType.Name(training.model_type)}, not BPE"
    if spec.precompiled_charsmap or proto.denormalizer_spec.precompiled_charsmap:
        return f"it rewrites characters ({spec.name})"
    if spec.remove_extra_whitespaces:
        return "it drops spaces (remove_extra_whitespaces)"
    if not spec.escape_whitespaces or training.treat_whitespace_as_suffix:
        return "its pieces do not begin with the space before a word"
    if prefix != "never" and TokenType.USER_DEFINED in kinds:
        return "it has user-defined pieces and puts a space before a text"
    if TokenType.UNUSED in kinds:
        return "it has pieces that are not used"
    if TokenType.UNKNOWN not in kinds:
        return "it has no unknown piece"
    return None


def _pieces(
    proto: Any, added: Mapping[int, tuple[str, bool]], special: Collection[str], name: str
) -> Pieces:
    """The model's pieces and those that the JSON files add behind them. A token that these files
    call special becomes a control piece."""
    texts = [piece.piece for piece in proto.pieces]
    kinds = [int(piece.type) for piece in proto.pieces]
    scores = [float(piece.score) for piece in proto.pieces]
    for i, (text, is_special) in sorted(added.items()):
        if i > len(texts):
            raise RequestError(
                f"{name}: the added token {text!r} has the id {i}, and there is none of the id "
                f"{len(texts)}; give a tokenizer.json"
            )
        if i == len(texts):
            texts.append(text)
            kinds.append(TokenType.USER_DEFINED)
            scores.append(0.0)
        elif texts[i] != text.replace(" ", SPACE):
            texts[i], kinds[i] = text, TokenType.USER_DEFINED
        if is_special and kinds[i] != TokenType.UNKNOWN:
            kinds[i] = TokenType.CONTROL
    for i, text in enumerate(texts):
        if text in special and kinds[i] != TokenType.UNKNOWN:
            kinds[i] = TokenType.CONTROL
    return Pieces(
        texts=texts, scores=scores, kinds=kinds, unknown_id=kinds.index(TokenType.UNKNOWN)
    )


# ---------------------------------------------------------------------------------------------
# The JSON files beside a model


def _read(directory: Path, file: str, name: str) -> dict[str, Any]:
    path = directory / file
    return files.read_object(path, f"{name}/{file}") if path.exists() else {}


def _added(directory: Path, config: Mapping[str, Any], name: str) -> dict[int, tuple[str, bool]]:
    """The texts of added tokens by id, and whether each is special."""
    tokens: dict[int, tuple[str, bool]] = {}
    for text, i in _read(directory, "added_tokens.json", name).items():
        if not isinstance(i, int) or i < 0:
            raise RequestError(f"{name}/added_tokens.json: the id of {text!r} is {i!r}")
        tokens[i] = (text, False)
    added = config.get("added_tokens_decoder") or {}
    for key, token in added.items() if isinstance(added, dict) else [("", added)]:
        content = _text(token)
        if not isinstance(key, str) or not key.isdecimal() or content is None:
            raise RequestError(
                f"{name}/tokenizer_config.json: added_tokens_decoder has {key!r}: {token!r:.200}, "
                "and not an id with the content of its token"
            )
        tokens[int(key)] = (content, bool(isinstance(token, dict) and token.get("special")))
    return tokens


def _special(named: Mapping[str, Any], proto: Any, name: str) -> dict[str, str]:
    """The special tokens that the JSON files name, or, where they name none, the model itself."""
    training, texts = proto.trainer_spec, [piece.piece for piece in proto.pieces]
    unknown = [piece.type for piece in proto.pieces].index(TokenType.UNKNOWN)
    ids = (training.bos_id, training.eos_id, unknown, training.pad_id)
    found: dict[str, str] = {}
    text: str | None
    for key, i in zip(("bos_token", "eos_token", "unk_token", "pad_token"), ids, strict=True):
        text = texts[i] if 0 <= i < len(texts) else None
        if key in named:
            text = _text(named[key])
            if text is None and named[key] is not None:
                raise RequestError(f"{name}: {key} is {named[key]!r:.200}, and not a token's text")
        if text is not None:
            found[key] = text
    return found


def _more(named: Mapping[str, Any]) -> list[str]:
    """Texts of further special tokens."""
    lists = (named.get("additional_special_tokens"), named.get("extra_special_tokens"))
    tokens = [
        token
        for each in lists
        for token in (each.values() if isinstance(each, dict) else each or ())
    ]
    return [text for text in map(_text, tokens) if text is not None]


def _text(token: Any) -> str | None:
    """The text of a token, which JSON gives plain or with its properties."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _template(directory: Path, config: Mapping[str, Any], name: str) -> str | dict[str, str] | None:
    if (directory / "chat_template.jinja").exists():
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if template is None or isinstance(template, str):
        return template
    try:
        return {str(each["name"]): str(each["template"]) for each in template}
    except (KeyError, TypeError) as error:
        raise RequestError(
            f"{name}/tokenizer_config.json: chat_template is neither a text nor a list of names "
            "with their templates"
        ) from error
