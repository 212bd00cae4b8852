"""What does the body of an endpoint's answer say?

Servers differ, and some answers are odd. An answer that cannot be read raises `UnreadableAnswer`,
which says why and costs only the row that was asked about.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from ste_jax.system import notation

_STOP = frozenset({
    "stop", "eos", "eos_token", "end", "end_turn", "end_of_turn", "eot", "stop_sequence",
    "stop_token", "complete", "completed", "done", "finished", "normal",
})  # fmt: skip
_LENGTH = frozenset({
    "length", "max_tokens", "max_length", "max_new_tokens", "max_completion_tokens",
    "max_output_tokens", "model_length", "token_limit", "model_context_window_exceeded",
})  # fmt: skip
_WORDS = ("text", "output_text")
_THINKING = ("thinking", "reasoning", "reasoning_content")
_MOST = 2**48
"""The largest count of tokens that is believed."""


class UnreadableAnswer(Exception):
    """An answer that cannot be read."""


@dataclass(frozen=True)
class Answer:
    """The content of one answer. `stopped` is the stop string that ended it, if the server says."""

    text: str
    thoughts: str
    reason: Literal["stop", "length"]
    stopped: str
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int


def read_body(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
      UnreadableAnswer: the body is no JSON object.
    """
    try:
        values = json.loads(body)
    except RecursionError:
        raise UnreadableAnswer("the answer is JSON of too many levels") from None
    except ValueError:
        raise UnreadableAnswer(f"the answer is not JSON: {_beginning(body)}") from None
    if not isinstance(values, dict):
        raise UnreadableAnswer(f"the answer is no chat completion: {_beginning(body)}")
    return values


def _beginning(body: bytes) -> str:
    return body[:300].decode("utf-8", "replace")


def status_of(values: dict[str, Any], status: int) -> int:
    """The true status of an answer: some endpoints report an error under the status 200."""
    fault = values.get("error")
    code = fault.get("code") if isinstance(fault, dict) else None
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
        code = int(code)
    if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
        return code
    return status


def read_answer(values: dict[str, Any], body: bytes, asked: int = 0) -> Answer:
    """Reads a chat completion. `asked` is how many tokens it could have, if that is known.

    Raises:
      UnreadableAnswer: it is no chat completion, or one without a readable text.
    """
    try:
        return _read(values, body, asked)
    except RecursionError:
        raise UnreadableAnswer("a part of the answer has too many levels") from None


def _read(values: dict[str, Any], body: bytes, asked: int) -> Answer:
    choices = values.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise UnreadableAnswer(f"the answer is no chat completion: {_beginning(body)}")
    text, thoughts = _content(message.get("content"))
    usage = _group(values.get("usage"))
    new_tokens = _count(usage.get("completion_tokens"))
    given = choice.get("finish_reason")
    reason = (
        _reason(given) if given not in (None, "") else _by_length(given, text, new_tokens, asked)
    )
    if not text and message.get("refusal"):
        raise UnreadableAnswer(f"the model refuses: {message['refusal']!s:.300}")
    if not text and message.get("tool_calls"):
        raise UnreadableAnswer("the answer calls a tool, and none was offered")
    if notation.has_lone_surrogate(text):
        raise UnreadableAnswer("the text of the answer holds half of a surrogate pair")
    for name in ("reasoning_content", "reasoning"):
        thoughts = thoughts or _thoughts(message.get(name))
    stopped = choice.get("stop_reason") or choice.get("matched_stop")
    details = _group(usage.get("prompt_tokens_details"))
    return Answer(
        text=text,
        thoughts=thoughts.encode("utf-8", "replace").decode(),
        reason=reason,
        stopped=stopped if isinstance(stopped, str) and reason == "stop" else "",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count(details.get("cached_tokens")),
        new_tokens=new_tokens,
    )


def _content(content: Any) -> tuple[str, str]:
    """The text and the thoughts of a message's content: a text, nothing, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise UnreadableAnswer(
            f"the content of the answer is a {type(content).__name__}, not a text"
        )
    text, thoughts = [], []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        words = part.get("text") if isinstance(part, dict) else part
        if kind in _THINKING:
            thoughts.append(_thoughts(part))
        elif kind in _WORDS and isinstance(words, str):
            text.append(words)
        else:
            raise UnreadableAnswer(f"a part of the answer is no text but of the type {kind!r:.100}")
    return "".join(text), "".join(thoughts)


def _thoughts(found: Any) -> str:
    """The text of thoughts, in whatever form a server gives them."""
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        return "".join(_thoughts(each) for each in found)
    if isinstance(found, dict):
        named = (found.get(name) for name in ("text", "content", "summary", *_THINKING))
        return next((words for words in map(_thoughts, named) if words), "")
    return ""


def _reason(reason: Any) -> Literal["stop", "length"]:
    """Why the answer ended, in the words of the protocol."""
    word = reason.strip().lower() if isinstance(reason, str) else ""
    if word in _STOP:
        return "stop"
    if word in _LENGTH:
        return "length"
    raise UnreadableAnswer(f"the endpoint ended the answer by {reason!r:.100}")


def _by_length(reason: Any, text: str, new_tokens: int, asked: int) -> Literal["stop", "length"]:
    """Why an answer ended, judged by its length, where the server does not say."""
    if not (text and new_tokens and asked):
        raise UnreadableAnswer(
            f"the endpoint ended the answer by {reason!r}, and does not count its tokens either; "
            "let the server give finish_reason, or usage.completion_tokens"
        )
    return "stop" if new_tokens < asked else "length"


def _group(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _count(found: Any) -> int:
    """A count of tokens; 0 for a value that is none."""
    whole = isinstance(found, int) and not isinstance(found, bool)
    return int(found) if whole and 0 <= found <= _MOST else 0
