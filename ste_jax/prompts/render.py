"""How does a role's prompt come about from its template and a row?

A template is a YAML file: `system` and `user` texts with `{name}` places, few-shot `examples` (each
the values of the places and the `reply`) that become turns of the chat, and `start`, a forced start
of the assistant's turn. One text per role lies in `templates/`; a config may name another file.

Places are filled in one pass, so that a brace or a place's name inside an answer is only text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ste_jax.errors import RequestError
from ste_jax.generation import Message
from ste_jax.system import notation

TEMPLATES = Path(__file__).parent / "templates"

PLACES = {
    "classify": frozenset({"instruction", "categories"}),
    "respond": frozenset({"instruction"}),
    "modify": frozenset({"instruction", "answer"}),
    "judge": frozenset({"instruction", "answer_a", "answer_b"}),
}
"""The places that each role's template may use."""

NEEDED = {
    "classify": frozenset({"instruction"}),
    "respond": frozenset({"instruction"}),
    "modify": frozenset({"instruction"}),
    "judge": frozenset({"instruction", "answer_a", "answer_b"}),
}
"""The places without which a role's `user` text would not ask what it is to ask."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """One role's prompt."""

    name: str
    user: str
    system: str = ""
    examples: tuple[Mapping[str, str], ...] = ()
    start: str = ""

    def messages(self, history: Sequence[Message] = (), **values: str) -> tuple[Message, ...]:
        """The turns of the chat: system, few-shot examples, `history` (what was said before in the
        row's own conversation; its system turn joins the template's), and the row's user turn."""
        turns: list[Message] = []
        said = [turn for turn in history if turn["role"] != "system"]
        systems = [turn["content"] for turn in history if turn["role"] == "system"]
        if self.system:
            systems.insert(0, fill(self.system, values))
        if systems:
            turns.append(Message(role="system", content="\n\n".join(systems)))
        for example in self.examples:
            shown = {**values, **example}
            turns.append(Message(role="user", content=fill(self.user, shown)))
            turns.append(Message(role="assistant", content=self.start + example["reply"]))
        turns += said
        turns.append(Message(role="user", content=fill(self.user, values)))
        return tuple(turns)

    def fingerprint(self) -> list[Any]:
        """All that the template says, for a stage's fingerprint."""
        return [self.system, self.user, [dict(each) for each in self.examples], self.start]


_PLACE = re.compile(r"\{([a-z_]+)\}")


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put `values` in the places of `text`, in one pass; what is put in is not looked at again."""
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), text)


@lru_cache(maxsize=64)
def load_template(name: str, role: str) -> Template:
    """Read the template of a role: a shipped one's name or the path of a YAML file.

    Raises:
      RequestError: no such file, a key or a place that does not exist, or an example without a
      reply.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else TEMPLATES / f"{name}.yaml"
    try:
        values = notation.from_yaml(notation.as_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(each.stem for each in TEMPLATES.glob("*.yaml")))
        raise RequestError(f"template {name} cannot be read ({error}); shipped: {known}") from error
    return check_template(values, name, role)


def check_template(values: Any, name: str, role: str) -> Template:
    """The template of a role that a file's `values` make; messages call it `name`.

    Raises:
      RequestError: as `load_template`.
    """
    known = {"system", "user", "examples", "start"}
    if not isinstance(values, dict) or not values.get("user") or set(values) - known:
        raise RequestError(
            f"template {name} must hold `user` and may hold {sorted(known)}, no more"
        )
    for key in ("system", "user", "start"):
        if not isinstance(values.get(key) or "", str):
            raise RequestError(f"template {name}: {key} is {values[key]!r}, not a text: quote it")
    used = {place for key in ("system", "user") for place in _PLACE.findall(values.get(key) or "")}
    if used - PLACES[role]:
        unknown, places = sorted(used - PLACES[role])[0], sorted(PLACES[role])
        raise RequestError(f"template {name} has a place {{{unknown}}}; {role} has {places}")
    lacking = NEEDED[role] - set(_PLACE.findall(values["user"]))
    if lacking:
        raise RequestError(
            f"template {name}: the user text of {role} has no place {{{sorted(lacking)[0]}}}"
        )
    examples = tuple(values.get("examples") or ())
    needed = {place for place in _PLACE.findall(values["user"]) if place != "categories"}
    for number, example in enumerate(examples):
        if not isinstance(example, dict) or needed - set(example) or "reply" not in example:
            missing = sorted(
                (needed | {"reply"}) - set(example if isinstance(example, dict) else ())
            )
            raise RequestError(f"template {name}: example {number} lacks {', '.join(missing)}")
        for key, value in example.items():
            if not isinstance(value, str):
                raise RequestError(
                    f"template {name}: example {number}: {key} is {value!r}, not a text: quote it"
                )
    return Template(
        name=name,
        user=values["user"].rstrip("\n"),
        system=(values.get("system") or "").rstrip("\n"),
        examples=examples,
        start=values.get("start") or "",
    )


def transcript(messages: Sequence[Message]) -> str:
    """The user's question as a judge reads it: one turn as it is, several as a transcript."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in messages)
