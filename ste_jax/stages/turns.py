"""How do the forms in which data sets hold a chat become turns?

A chat may be a text; a list of texts, of turns (`role` and `content`, ShareGPT's `from` and
`value`) or of pairs of question and answer; a turn by itself; a list of content parts; a list per
column; or any of these written as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ste_jax.generation import Message
from ste_jax.system import notation

ROLE_NAMES = ("role", "from")
CONTENT_NAMES = ("content", "value", "text")
CHAT_NAMES = ("messages", "conversation", "conversations", "turns")
"""Columns that hold chats."""
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "function_call"), "tool"),
}
"""The names that data sets have for speakers -> the roles of chat templates."""


def at_path(values: Any, path: str) -> Any:
    """The value at a field path like `conversation[0].content`; None where it leads nowhere.

    If a column's own name is this text, dots and brackets included, the column is meant."""
    if not path:
        return values
    if isinstance(values, (str, bytes)) and path.startswith("["):
        values = _written(values)
    if isinstance(values, Mapping):
        if path.startswith("["):
            return at_path(_rows(values), path)
        for name in _names(path):
            if name in values:
                return at_path(values[name], path[len(name) :].removeprefix("."))
        return None
    index = re.match(r"\[(\d+)\]\.?", path)
    if index is None or not isinstance(values, Sequence) or int(index[1]) >= len(values):
        return None
    return at_path(values[int(index[1])], path[index.end() :])


def column_of(values: Mapping[str, Any], path: str) -> str:
    """The column of a row that a path leads into; empty where there is none."""
    return next((name for name in _names(path) if name in values), "")


def groups_around(path: str) -> list[str]:
    """The beginnings of a path that name the groups around its end, the innermost first: `a.b.` and
    `a.` for `a.b.c`."""
    return [f"{name}." for name in _names(path)[1:]]


@lru_cache(maxsize=1024)
def _names(path: str) -> tuple[str, ...]:
    """The names that a path may begin with, the longest first."""
    cuts = [place for place, sign in enumerate(path) if sign in ".[" and place]
    return (path, *(path[:cut] for cut in reversed(cuts)))


def speaker(values: Mapping[str, Any], path: str) -> str:
    """The role of the turn that a path leads into; empty if it leads into none."""
    turns = groups_around(path) + ([""] if path in CONTENT_NAMES else [])
    said = (at_path(values, turn + name) for turn in turns for name in ROLE_NAMES)
    return next((ROLES[each.lower()] for each in said if _is_role(each)), "")


def _is_role(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in ROLES


def text_of(value: Any) -> str:
    """The text of a text, a number, or content parts that are texts; empty for no value.

    Raises:
      ValueError: it is something else, such as a picture; says what.
    """
    if value is None or value != value:  # a cell without a value is NaN to pandas
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bytes):
        try:
            return value.decode().strip()
        except UnicodeDecodeError:
            raise ValueError("holds bytes that are not UTF-8") from None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Mapping) and str(value.get("type", "text")) in _TEXT_PARTS:
        if isinstance(value.get("text"), str):
            return str(value["text"]).strip()
    elif isinstance(value, (list, tuple)):
        return "\n".join(text_of(part) for part in value)
    kind = value.get("type") if isinstance(value, Mapping) else None
    raise ValueError(f"holds {kind or type(value).__name__!r}, which is no text")


_TEXT_PARTS = ("text", "input_text", "output_text")


def opening(value: Any, name: str = "") -> tuple[Message, ...]:
    """The beginning of a chat: its system turn, if that has a text, and the user's first turn (the
    later ones answer replies that are not this model's). `name` is the field's name.

    Raises:
      ValueError: the value is no chat, or does not begin with the user's turn; says why.
    """
    if name in CHAT_NAMES and isinstance(value, (str, bytes)):
        value = _written(value, chats=True)
    systems: list[str] = []
    for role, text in _turns(value):
        if role == "user":
            return with_system(systems, (Message(role="user", content=text),))
        if role != "system":
            raise ValueError(f"begins with the turn of {role}, not with the user's")
        systems.append(text)
    raise ValueError("holds no turn of the user")


def earlier(value: Any) -> tuple[Message, ...]:
    """The turns before a question: questions and answers in turn, after a system turn if any.

    Raises:
      ValueError: the value is something else; says what.
    """
    if isinstance(value, (str, bytes)):
        value = _written(value)
    if not value or value != value or (isinstance(value, str) and not value.strip()):
        return ()
    turns = _turns(value, every=True)
    systems = [text for role, text in turns if role == "system"]
    said = [(role, text) for role, text in turns if role != "system"]
    wanted = ["user", "assistant"] * (len(said) // 2)
    if [role for role, _ in said] != wanted or not all(text for _, text in said):
        raise ValueError("is not questions and answers in turn")
    return with_system(systems, tuple(Message(role=role, content=text) for role, text in said))


def with_system(texts: Sequence[str], turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns behind one system turn that joins the texts that are not empty, each once."""
    text = "\n\n".join(dict.fromkeys(text for text in texts if text))
    return (*((Message(role="system", content=text),) if text else ()), *turns)


def _turns(value: Any, *, every: bool = False) -> list[tuple[str, str]]:
    """The role and the text of each turn up to the user's first, or of `every` turn."""
    if isinstance(value, (str, bytes)):
        value = _written(value)
    if isinstance(value, (str, bytes)):
        if every:
            raise ValueError("is a text, not a list of turns")
        return [("user", text_of(value))]
    if isinstance(value, Mapping):
        value = [value] if _is_turn(value) else _rows(value)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("is not a text or a list of turns")
    turns: list[tuple[str, str]] = []
    for place, each in enumerate(value):
        turns += _one(each, place)
        if not every and any(role == "user" for role, _ in turns):
            break
    return turns


def _one(turn: Any, place: int) -> list[tuple[str, str]]:
    """The turn at a place of a list; a pair is a question and its answer."""
    usual = ("user", "assistant")
    if isinstance(turn, str):
        return [(usual[place % 2], text_of(turn))]
    if isinstance(turn, (list, tuple)) and len(turn) == 2:
        return [(role, text_of(text)) for role, text in zip(usual, turn, strict=True)]
    names = turn if isinstance(turn, Mapping) else {}
    contents = [names[name] for name in CONTENT_NAMES if name in names]
    if not contents:
        raise ValueError("is not a text or a list of turns with `role` and `content`")
    said = next((names[name] for name in ROLE_NAMES if names.get(name) is not None), None)
    if said is None and not place:
        said = "user"
    if not _is_role(said):
        raise ValueError(f"has a turn of {said!r}, which is not one of {', '.join(ROLES)}")
    content = next((each for each in contents if each is not None), None)
    return [(ROLES[str(said).lower()], text_of(content))]


def _rows(columns: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The list of turns that `datasets` keeps as a list per column; None if it is none."""
    lists = {name: each for name, each in columns.items() if isinstance(each, (list, tuple))}
    lengths = {len(each) for each in lists.values()}
    if not set(lists) & set(CONTENT_NAMES) or len(lengths) != 1:
        return None
    return [{name: each[row] for name, each in lists.items()} for row in range(lengths.pop())]


def _is_turn(value: Mapping[str, Any]) -> bool:
    """Whether a mapping is one turn by itself, and not a list per column."""
    contents = [value[name] for name in CONTENT_NAMES if value.get(name) is not None]
    if any(isinstance(value.get(name), str) for name in ROLE_NAMES):
        return any(isinstance(each, (str, list, tuple)) for each in contents)
    return any(
        isinstance(each, str)
        or (isinstance(each, (list, tuple)) and all(isinstance(part, Mapping) for part in each))
        for each in contents
    )


_OF_PYTHON = re.compile(
    r"""(?: [\[({]\s* | (?:\w+\.)?(?:array|OrderedDict|dict|list|tuple|\w*Message)\(\s* )+
    (?: [bru]?['"] | (?:role|content)\s*= ) .* [\])}]\Z""",
    re.DOTALL | re.VERBOSE,
)
"""Lists, dicts and tuples as Python and numpy write them (and JSON, which is tried before)."""
_OF_TURNS = re.compile(r"""['"](role|from|content|value)['"]\s*[:,]|\b(role|content)=""")


def _written(value: str | bytes, *, chats: bool = False) -> Any:
    """The chat that a table's cell holds as JSON; the value itself where it is an ordinary text.
    `chats` says that the column holds chats.

    Raises:
      ValueError: the cell holds a chat in the notation of Python or numpy.
    """
    text = text_of(value)
    try:
        found = notation.from_json(text) if text[:1] in ("[", "{") else None
    except ValueError:
        found = None
    if isinstance(found, list):
        return found if _is_chat(found) else value
    if isinstance(found, dict):
        return found if _is_chat_object(found) else value
    # Any text may begin with a brace or a parenthesis, unless the column holds chats: then the
    # names of a turn must be in it, too.
    if _OF_PYTHON.match(text) and (chats or text[0] == "[" or _OF_TURNS.search(text)):
        raise ValueError("is a list written as a text that is not JSON")
    return value


_OF_A_TURN = {*ROLE_NAMES, *CONTENT_NAMES, "type", "name"}


def _is_chat_object(found: dict[str, Any]) -> bool:
    """Whether an object is a turn, a list per column, or has a chat in it."""
    if any(isinstance(found.get(name), list) and _is_chat(found[name]) for name in CHAT_NAMES):
        return True
    said = any(name in found for name in ROLE_NAMES) or set(found) <= _OF_A_TURN
    return said and any(isinstance(found.get(name), str | list) for name in CONTENT_NAMES)


def _is_chat(found: list[Any]) -> bool:
    """Whether a list holds texts, turns, or pairs of texts."""
    if all(isinstance(each, str | None) for each in found):
        return any(found) or not found
    if all(isinstance(each, dict) for each in found):
        return any(name in each for each in found for name in CONTENT_NAMES)
    return all(isinstance(each, list) and _is_chat(each) for each in found)
