"""How is a role's prompt made from its template and a row?

A template is a YAML file: `system` and `user` texts with `{name}` places, few-shot `examples` (each
the values of the places and the `reply`) that become turns of the chat, and `start`, a forced start
of the assistant's turn. `templates/` has one or more for each role; a config may name another file.

Places are filled in one pass, so that a brace or a place's name inside an answer is only text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ste_jax.generation import Message
from ste_jax.system import notation
from ste_jax.system.errors import RequestError
from ste_jax.system.yaml_notation import from_yaml

TEMPLATES = Path(__file__).parent / "templates"


class Places(NamedTuple):
    """The places that a role's template may have, and those that its `user` text must have."""

    role: str
    known: frozenset[str]
    needed: frozenset[str]


PLACES = {
    places.role: places
    for places in (
        Places("classify", frozenset({"instruction", "categories"}), frozenset({"instruction"})),
        Places("respond", frozenset({"instruction"}), frozenset({"instruction"})),
        Places("modify", frozenset({"instruction", "answer"}), frozenset({"instruction"})),
    )
}
"""Role -> its places. The judge's are those of its task (`ste_jax.tasks`)."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """One role's prompt."""

    name: str
    user: str
    system: str = ""
    examples: tuple[Mapping[str, str], ...] = ()
    start: str = ""

    def messages(self, history: Sequence[Message] = (), **values: str) -> tuple[Message, ...]:
        """The turns of the chat: system, few-shot examples, `history` (the row's earlier turns,
        whose system turn joins the template's), and the row's user turn."""
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
        """What a fingerprint holds of the template: all of its texts."""
        return [self.system, self.user, [dict(each) for each in self.examples], self.start]


_PLACE = re.compile(r"\{([a-z_]+)\}")


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put `values` in the places of `text`, in one pass: a place inside a value is not filled."""
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), text)


@lru_cache(maxsize=64)
def load_template(name: str, places: Places) -> Template:
    """Read the template of a role; `name` is that of a shipped one, or the path of a YAML file.

    Raises:
      RequestError: no such file, a key or a place that does not exist, or an example without a
      reply.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else TEMPLATES / f"{name}.yaml"
    try:
        values = from_yaml(notation.as_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(each.stem for each in TEMPLATES.glob("*.yaml")))
        raise RequestError(f"template {name} cannot be read ({error}); shipped: {known}") from error
    return check_template(values, name, places)


def check_template(values: Any, name: str, places: Places) -> Template:
    """The template of a role from a file's `values`; error messages call it `name`.

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
    if used - places.known:
        unknown, known_places = sorted(used - places.known)[0], sorted(places.known)
        raise RequestError(
            f"template {name} has a place {{{unknown}}}; {places.role} has {known_places}"
        )
    lacking = places.needed - set(_PLACE.findall(values["user"]))
    if lacking:
        raise RequestError(
            f"template {name}: the user text of {places.role} has no place {{{sorted(lacking)[0]}}}"
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
